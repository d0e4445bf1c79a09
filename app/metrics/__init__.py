"""Every Prometheus metric with its unit, labels and buckets, and the time stamps of one request."""
