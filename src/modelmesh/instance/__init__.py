"""Assembly: build the parts from settings, start them, stop them in order. The only place that chooses implementations."""
