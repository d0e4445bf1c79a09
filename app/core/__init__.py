"""What the product decides: which variants there are, who serves them, what a request or a job does next."""
