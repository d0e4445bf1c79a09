"""The engine: a scheduler and a paged KV pool under unmodified transformers modelling code."""
