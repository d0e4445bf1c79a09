"""Chat templates are programs from strangers: they run in a process of their own, which may be killed at any time."""
