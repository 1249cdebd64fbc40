"""Serve far more models than fit in memory, behind one endpoint, from a laptop to a fleet.

The rooms of this package are described in ARCHITECTURE.md. Nothing is imported here, so that a worker process
pays only for what it uses.
"""

__version__ = "0.1.0"
