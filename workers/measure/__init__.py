"""Measurements of variants: how far one is from its base, and whether it works at all."""
