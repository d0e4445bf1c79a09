"""The bodies of requests as they arrive on the wire, with every bound written beside its field."""
