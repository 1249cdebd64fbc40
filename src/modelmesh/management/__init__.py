"""gRPC faces of the control plane, on a unix socket behind the data plane: health, reflection, ServerLive, ModelReady, …"""
