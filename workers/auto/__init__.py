"""The method `auto`: bits for each linear by measured sensitivity, within a budget of bytes."""
