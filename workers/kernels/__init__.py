"""Torch ops of slimserve: a schema and a plain definition each, and one implementation per device."""
