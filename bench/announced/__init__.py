"""The figures that ModelMesh was announced with, measured here: `python -m bench.announced`."""
