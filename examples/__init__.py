"""Example models and clients: what a first user would have lying around. Nothing of the product imports this."""
