"""The boundary to the native module: the only package that imports `modelmesh._native`.

`protocol` says what a data plane promises (the mesh sees only that), `relay` is the native one, `model_server` is the
worker's half. No decision is taken here, and nothing here is on the path of a request.
"""
