"""What if: a request log, or a synthetic one, through the real policies at other sizes of memory. No clock, no sockets."""
