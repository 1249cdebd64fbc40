"""Model servers of others: whatever speaks `mmesh.ModelRuntime`, the contract of KServe ModelMesh's runtimes.

`calls` is the wire, `status` what a server says of itself, `life` the time from one connection to its end, `runtime` puts lives
behind the Runtime protocol. Only `instance` builds it. grpc is imported when the runtime starts.
"""
