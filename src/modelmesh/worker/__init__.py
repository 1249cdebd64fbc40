"""The built-in model server: one process that holds models and answers Open Inference Protocol calls on a unix socket.

Imports nothing of the mesh: the memory of this process is the users'. `control` is what it says to its supervisor,
`formats/` has one file per model format.
"""
