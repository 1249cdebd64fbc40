"""Model files: finding them in folders today, fetching them from object stores later."""
