"""Our runtimes as servers of `mmesh.ModelRuntime`, for meshes of others: the predecessor's, or another of ours.

`models` loads and unloads, `requests` is the way of requests to them, `service` the five methods, `serving` puts them together.
Nothing below imports it.
"""
