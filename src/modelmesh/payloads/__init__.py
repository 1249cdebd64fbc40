"""Payload processors: requests and responses that the data plane offers are sent on, or logged. Nothing waits for them."""
