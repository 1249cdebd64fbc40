"""This instance as a cache: its copies and their bytes; what is loaded next, and what is evicted for it.

One runtime is a `site` with a budget, loads and evictions of its own; `sites` says which of them a model belongs to. Knows
nothing of names, and of other instances only what `routes` must: where else copies are.
"""
