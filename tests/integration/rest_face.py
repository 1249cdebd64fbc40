"""A relay with its REST listener, an upstream that answers what it was sent, and ways to talk to it, well-mannered or raw."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from modelmesh.dataplane.protocol import DataPlaneConfig, Name, NameKind, Replica, Route, Target
from modelmesh.dataplane.relay import Relay
from modelmesh.wire.generated import inference_pb2 as pb

TIMEOUT_S = 20.0
SERVICE = "inference.GRPCInferenceService"
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


def echo(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """Every input as an output, as raw contents and in the concrete model's name."""
    response = pb.ModelInferResponse(
        model_name="concrete", model_version=request.model_version, id=request.id
    )
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(raw)
    return response


@dataclass
class Upstream(grpc.GenericRpcHandler):
    """A model server and a control plane in one. A test may replace `infer`."""

    infer: Callable[[pb.ModelInferRequest], pb.ModelInferResponse] = echo
    ready: bool = True
    requests: list[object] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = details.method.rsplit("/", 1)[-1]
        request_type = getattr(pb, f"{method}Request", None)
        if request_type is None:
            return None

        def handle(message: bytes, context: grpc.ServicerContext) -> bytes:
            request = request_type.FromString(message)
            self.requests.append(request)
            self.metadata = {key: str(value) for key, value in context.invocation_metadata()}
            return self.answer(method, request, context).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(handle)

    def answer(self, method: str, request: object, context: grpc.ServicerContext) -> object:
        match method:
            case "ModelInfer":
                assert isinstance(request, pb.ModelInferRequest)
                return self.infer(request)
            case "ModelMetadata":
                response = pb.ModelMetadataResponse(name="concrete", platform="echo")
                response.inputs.add(name="x", datatype="FP32", shape=[-1, 4])
                return response
            case "ServerLive":
                return pb.ServerLiveResponse(live=True)
            case "ServerReady":
                return pb.ServerReadyResponse(ready=self.ready)
            case "ModelReady":
                return pb.ModelReadyResponse(ready=self.ready)
            case "ServerMetadata":
                return pb.ServerMetadataResponse(
                    name="modelmesh", version="1", extensions=["model_repository"]
                )
            case "RepositoryIndex":
                response = pb.RepositoryIndexResponse()
                response.models.add(name="iris", state="READY")
                return response
            case "RepositoryModelLoad":
                return pb.RepositoryModelLoadResponse()
            case _:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{method} is not possible now.")
                raise AssertionError("abort raises")


@dataclass(frozen=True)
class RestFace:
    plane: Relay
    upstream: Upstream
    address: tuple[str, int]

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def serve(self, name: str, model: str = "", version: str = "") -> None:
        """Let this name be answered by the upstream."""
        model = model or f"{name}-{version or 'one'}"
        replica_id = abs(hash(model)) % (1 << 30)
        self.plane.publish([Route(model, (Replica(replica_id, 1),))])
        self.plane.publish_names([(Name(NameKind.VMODEL_FIRST, name, version), model)])

    def talk(self, data: bytes, *, more: bytes = b"") -> bytes:
        """Send bytes as they are (and `more`, as far as it is taken), and read until the relay closes."""
        with socket.create_connection(self.address, timeout=TIMEOUT_S) as connection:
            connection.sendall(data)
            # It need not read what it has refused; what counts is the answer.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(more)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received


@contextmanager
def rest_face(folder: Path, **config: int) -> Iterator[RestFace]:
    """A relay in front of one upstream, whose unix socket is in `folder`."""
    upstream = Upstream()
    path = folder / "upstream.sock"
    server = grpc.server(
        ThreadPoolExecutor(8), handlers=[upstream], options=[("grpc.max_receive_message_length", -1)]
    )
    server.add_insecure_port(f"unix:{path}")
    server.start()
    settings = {"grpc_port": -1, "rest_port": 0, "message_bytes_max": MESSAGE_BYTES_MAX, **config}
    plane = Relay(DataPlaneConfig(control_socket=str(path), **settings))  # type: ignore[arg-type]
    try:
        host, _, port = plane.start().rest.rpartition(":")
        plane.set_targets([Target(1, f"unix:{path}")], [])
        yield RestFace(plane, upstream, (host, int(port)))
    finally:
        plane.stop()
        server.stop(grace=None).wait(TIMEOUT_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; fails when it does not in time."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
