"""HTTP: one file per resource that parses, calls the core and shapes the answer; and what all routes share."""
