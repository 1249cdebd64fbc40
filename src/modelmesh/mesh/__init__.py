"""Behaviour: resolve faults, load, evict, keep names, follow folders, recover.

Ordinary async code against protocols (`Store`, `Runtime`, `DataPlane`, `Clock`), so that the simulator runs it
unchanged under virtual time. Faces (ops, management, CLI) see `control.ControlPlane` and `views`, nothing else.
"""
