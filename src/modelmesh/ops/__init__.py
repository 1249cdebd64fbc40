"""The ops port: health, metrics, admin API. Reads the control plane through `mesh.control` and `mesh.views`."""
