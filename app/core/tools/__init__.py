"""What a model's text means beside its content: thinking and calls of tools, each family in its own syntax."""
