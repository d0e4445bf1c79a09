"""The language that the front end and its child processes speak: specs, messages, frames and error codes.

The one package that both sides import. It depends on the standard library and msgspec only.
"""
