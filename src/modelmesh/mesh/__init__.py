"""Behaviour: resolve faults, load, evict, keep names, follow folders, recover.

Ordinary async code against protocols (`Store`, `Runtime`, `DataPlane`, `Clock`), so that the simulator runs it
unchanged under virtual time. Faces (ops, management, CLI) see `control.ControlPlane` and `views`, nothing else.

`mesh` puts the rooms together. Arrows point down: `keeping`, `peering`, `naming`, `cache`, then the words they share (`fleet`,
`views`, `tuning`, `measures`). `faults` is where a request that found no copy comes in, `desk` where the faces do.
"""
