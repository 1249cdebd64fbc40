"""Model servers beside an instance: the Runtime protocol and the built-in runtime (worker processes).

`protocol` is all the mesh sees. External runtimes (`mmesh.ModelRuntime`, Triton, MLServer, …) join here later. A
runtime holds models and tells what they cost; it never decides which to hold.
"""
