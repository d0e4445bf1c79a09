"""The `slimserve` command: one file per group of commands, clients of the HTTP API but for `serve` and `doctor`."""
