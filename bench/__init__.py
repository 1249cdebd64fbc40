"""Benchmarks and the soak: everything is measured beside a reference in the same run. Nothing of the product imports this."""
