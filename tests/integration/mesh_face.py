"""A whole instance without worker processes: the relay, the mesh and the control plane are real, the models are scripted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from modelmesh.clock import LoopClock
from modelmesh.dataplane.protocol import DataPlaneConfig
from modelmesh.dataplane.relay import Relay
from modelmesh.journal import Journal
from modelmesh.management.model_mesh import NAME
from modelmesh.management.server import ControlServer
from modelmesh.mesh.mesh import Mesh
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.registry.mirror import Mirror
from modelmesh.runtime.protocol import Runtime
from modelmesh.store.memory import MemoryStore
from modelmesh.store.protocol import Store
from modelmesh.testing.runtime import Artefact, FakeRuntime
from modelmesh.wire.generated import model_mesh_pb2 as pb

TIMEOUT_S = 10.0
REQUESTS: dict[str, Any] = {
    "registerModel": pb.RegisterModelRequest,
    "addModel": pb.RegisterModelRequest,
    "unregisterModel": pb.UnregisterModelRequest,
    "deleteModel": pb.UnregisterModelRequest,
    "getModelStatus": pb.GetStatusRequest,
    "ensureLoaded": pb.EnsureLoadedRequest,
    "setVModel": pb.SetVModelRequest,
    "deleteVModel": pb.DeleteVModelRequest,
    "getVModelStatus": pb.GetVModelStatusRequest,
}
ANSWERS: dict[str, Any] = {
    **dict.fromkeys(("registerModel", "addModel", "getModelStatus", "ensureLoaded"), pb.ModelStatusInfo),
    **dict.fromkeys(("unregisterModel", "deleteModel"), pb.UnregisterModelResponse),
    **dict.fromkeys(("setVModel", "getVModelStatus"), pb.VModelStatusInfo),
    "deleteVModel": pb.DeleteVModelResponse,
}


class Answering(grpc.GenericRpcHandler):
    """Answers every call with "model:request" while the runtime has the model."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        model = str(dict(context.invocation_metadata())["mm-model-id"])
        if model not in self._runtime.loaded:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Model {model} is not here.")
        return model.encode() + b":" + request


class Script(dict[str, Artefact]):
    """What models are made of, by path. One that is not mentioned loads at once."""

    def __missing__(self, path: str) -> Artefact:
        return Artefact()


@dataclass
class Face:
    """An instance and a client of it."""

    address: str
    channel: grpc.aio.Channel
    mesh: Mesh
    relay: Relay
    control: Path
    registrar: Registrar

    async def call(
        self, method: str, service: str = NAME, *, timeout_s: float = TIMEOUT_S, **fields: Any
    ) -> Any:
        """A call of the management API, the request made of `fields`. Raises AioRpcError."""
        answer = ANSWERS[method]
        rpc = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return await rpc(REQUESTS[method](**fields), timeout=timeout_s)

    async def refused(self, method: str, service: str = NAME, **fields: Any) -> tuple[str, str]:
        """The code and the text of a call that fails."""
        try:
            answer = await self.call(method, service, **fields)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        raise AssertionError(f"{method} did not fail: {answer}")


@dataclass
class MeshFace(Face):
    """`script` says what models are made of, by path."""

    runtime: FakeRuntime
    script: Script

    async def infer(self, name: str, header: str = "mm-model-id") -> str:
        """What a model answers. Raises AioRpcError."""
        rpc = self.channel.unary_unary("/test.Service/Infer")
        answer: bytes = await rpc(b"x", timeout=TIMEOUT_S, metadata=((header, name),))
        return answer.decode()


@asynccontextmanager
async def mesh_face(
    folder: Path, *, store: Store | None = None, read_only: bool = False, **how: Any
) -> AsyncIterator[MeshFace]:
    """Serves scripted models while entered. `how` is passed to the fake runtime."""
    script, models = Script(), folder / "models.sock"
    runtime = FakeRuntime(lambda spec: script[spec.path], address=f"unix:{models}", **how)
    server = grpc.aio.server(handlers=[Answering(runtime)])
    server.add_insecure_port(f"unix:{models}")
    await server.start()
    try:
        async with face_of(runtime, folder, store=store, read_only=read_only) as face:
            yield MeshFace(**vars(face), runtime=runtime, script=script)
    finally:
        await server.stop(None)


@asynccontextmanager
async def face_of(
    runtime: Runtime, folder: Path, *, store: Store | None = None, read_only: bool = False
) -> AsyncIterator[Face]:
    """An instance with this runtime, while entered."""
    store, clock = store or MemoryStore(), LoopClock()
    journal = Journal(clock)
    await store.open()
    registrar = Registrar(store, Mirror(), clock, journal, read_only=read_only)
    await registrar.start()
    control = folder / "control.sock"
    relay = Relay(DataPlaneConfig(str(control), grpc_port=0, rest_port=-1))
    mesh = Mesh(relay, runtime, registrar, clock, journal, random.Random(1), id="here")
    faces = ControlServer(control, 1 << 20)
    loop = asyncio.get_running_loop()
    await mesh.start()
    await faces.start(mesh)
    address = relay.start().grpc
    loop.add_reader(relay.fileno(), lambda: mesh.handle_events(relay.take_events()))
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Face(address, channel, mesh, relay, control, registrar)
    finally:
        await mesh.stop(0.5)
        loop.remove_reader(relay.fileno())
        relay.stop()
        await faces.stop(0.1)
        await registrar.stop()
