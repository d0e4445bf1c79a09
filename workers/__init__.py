"""The device side of slimserve: processes that hold models, compress them and measure them.

Nothing in this package imports fastapi; the front end talks to it through `workers.protocol` only.
"""
