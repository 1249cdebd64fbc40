"""The `modelmesh` command: start an instance, or talk to a running one over its ops API."""
