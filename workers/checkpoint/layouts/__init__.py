"""How compressed weights lie in files: one module per family of formats, and the table of all."""
