"""Compression of checkpoints: methods choose the numbers, the pipeline walks the model and writes the variant."""
