"""How compressed weights are stored and multiplied: one module per format, a table, the swap into a model."""
