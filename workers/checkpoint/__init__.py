"""Checkpoints on disk: what is safe to open, what the headers say, reading and writing tensors, manifests, the hub."""
