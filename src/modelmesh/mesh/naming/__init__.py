"""Names and what they stand for: the only writer of the registry, vmodels and how they move, canaries, served folders.

`names`, beside this room, answers from it for requests that wait.
"""
