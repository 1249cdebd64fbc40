"""Data planes with what stands around them, for the contract suites: the relay between real sockets, and the simulator's fake."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import grpc

from modelmesh.dataplane.protocol import (
    DataPlane,
    DataPlaneConfig,
    Event,
    Name,
    NameKind,
    Replica,
    Route,
    Target,
)
from modelmesh.dataplane.relay import Relay
from modelmesh.errors import Code
from modelmesh.testing.dataplane import FakeDataPlane

TIMEOUT_S = 20.0
DEADLINE_MS_MAX = TIMEOUT_S * 1000 * 1.01
"""gRPC clients round timeouts up, to about three digits."""
IRIS = Name(NameKind.MODEL_FIRST, "iris")
E = TypeVar("E", bound=Event)


class Answer(NamedTuple):
    code: Code
    model: str
    message: str
    retry_after_ms: int


class Clients(Protocol):
    """Asks for a name (of kind MODEL_FIRST); the model takes `execution_s`."""

    plane: DataPlane
    peer: str
    """The address of its port for other instances."""

    def ask(self, name: Name, timeout_s: float, execution_s: float) -> asyncio.Future[Answer]: ...
    async def lose(self, target_id: int) -> None: ...


class World:
    """A data plane with the targets 1 and 2, its clients, and which replicas are gone from their targets."""

    def __init__(self, clients: Clients, gone: set[int]) -> None:
        self.clients = clients
        self.plane = clients.plane
        self.gone = gone
        self.events: list[Event] = []

    def ask(
        self, name: Name = IRIS, timeout_s: float = TIMEOUT_S, execution_s: float = 0.0
    ) -> asyncio.Future[Answer]:
        return self.clients.ask(name, timeout_s, execution_s)

    async def event(self, kind: type[E], **fields: object) -> E:
        """The first event of this kind with these fields; it and those before it are forgotten."""

        def matches(event: Event) -> bool:
            return isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items())

        await self.until(lambda: any(map(matches, self.events)))
        at = next(at for at, event in enumerate(self.events) if matches(event))
        found = self.events[at]
        del self.events[: at + 1]
        assert isinstance(found, kind)
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        give_up_s = asyncio.get_running_loop().time() + TIMEOUT_S
        while True:
            self.events += self.plane.take_events()
            if condition():
                return
            assert asyncio.get_running_loop().time() < give_up_s, self.events
            await asyncio.sleep(0.002)

    async def parked(self, model: str, n: int) -> None:
        await self.until(
            lambda: [row.waiting for row in self.plane.take_waiting() if row.model == model] == [n]
        )

    async def in_flight(self, replica_id: int, n: int) -> None:
        rows = {}

        def reached() -> bool:
            rows.update({row.replica_id: row.in_flight for row in self.plane.take_usage()})
            return rows.get(replica_id, 0) == n

        await self.until(reached)

    def route(self, model: str, *replicas: Replica, name: Name = IRIS) -> None:
        self.plane.publish([Route(model, replicas)])
        self.plane.publish_names([(name, model)])


class FakeClients:
    peer = "instance:8080"

    def __init__(self, gone: set[int]) -> None:
        self.plane = FakeDataPlane(holds=lambda model, replica_id: replica_id not in gone)

    def ask(self, name: Name, timeout_s: float, execution_s: float) -> asyncio.Future[Answer]:
        request = self.plane.request(name, timeout_s, execution_s)
        asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answered(answer: asyncio.Future[Any]) -> None:
            if not asked.done():
                code, message, model, retry_after_ms = answer.result()
                asked.set_result(Answer(code, model, message, retry_after_ms))

        request.answer.add_done_callback(answered)
        asked.add_done_callback(lambda asked: request.cancel() if asked.cancelled() else None)
        return asked

    async def lose(self, target_id: int) -> None:
        self.plane.lose_target(target_id)


class RelayClients:
    def __init__(
        self, plane: Relay, peer: str, channel: grpc.aio.Channel, servers: dict[int, grpc.Server]
    ) -> None:
        self.plane = plane
        self.peer = peer
        self._call = channel.unary_unary("/test.Echo/Call")
        self._servers = servers

    def ask(self, name: Name, timeout_s: float, execution_s: float) -> asyncio.Future[Answer]:
        metadata = (("mm-model-id", name.name),)

        async def asked() -> Answer:
            call = self._call(str(execution_s).encode(), timeout=timeout_s, metadata=metadata)
            try:
                model = (await call).decode()
            except grpc.aio.AioRpcError as error:
                trailers = dict(error.trailing_metadata() or ())
                pushback = trailers.get("grpc-retry-pushback-ms", "-1")
                return Answer(Code(error.code().value[0]), "", error.details() or "", int(str(pushback)))
            return Answer(Code.OK, model, "", -1)

        return asyncio.ensure_future(asked())

    async def lose(self, target_id: int) -> None:
        await asyncio.to_thread(self._servers.pop(target_id).stop(grace=None).wait, TIMEOUT_S)


class Echo(grpc.GenericRpcHandler):
    """Answers with the model's id after as many seconds as the request says, unless what it holds is `gone`."""

    def __init__(self, gone: Callable[[], bool]) -> None:
        self._gone = gone

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def serve(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self._gone():
                context.set_trailing_metadata((("mm-not-here", "1"),))
                context.abort(grpc.StatusCode.NOT_FOUND, "not here")
            over = threading.Event()
            if context.add_callback(over.set):
                over.wait(float(request))
            return str(dict(context.invocation_metadata())["mm-model-id"]).encode()

        return grpc.unary_unary_rpc_method_handler(serve)


@asynccontextmanager
async def fake_world(folder: Path) -> AsyncIterator[World]:
    gone: set[int] = set()
    clients = FakeClients(gone)
    clients.plane.start()
    clients.plane.set_targets([Target(1, "unix:/1"), Target(2, "unix:/2")], [])
    yield World(clients, gone)
    clients.plane.stop()
    assert not clients.plane.violations


@asynccontextmanager
async def relay_world(folder: Path) -> AsyncIterator[World]:
    gone: set[int] = set()
    servers = {}
    for target_id in (1, 2):
        # In these tests the replicas 10 … 19 live in target 1, 20 … 29 in target 2, one at a time.
        tens = range(target_id * 10, target_id * 10 + 10)
        server = grpc.server(
            ThreadPoolExecutor(80), handlers=[Echo(lambda tens=tens: bool(gone & set(tens)))]
        )
        server.add_insecure_port(f"unix:{folder}/{target_id}.sock")
        server.start()
        servers[target_id] = server
    control_socket = f"{folder}/control.sock"
    plane = Relay(DataPlaneConfig(control_socket, grpc_port=0, rest_port=-1, peer_port=0, threads=2))
    addresses = plane.start()
    channel = grpc.aio.insecure_channel(addresses.grpc, options=[("grpc.enable_retries", 0)])
    plane.set_targets([Target(target_id, f"unix:{folder}/{target_id}.sock") for target_id in (1, 2)], [])
    try:
        yield World(RelayClients(plane, addresses.peer, channel, servers), gone)
    finally:
        await channel.close()
        await asyncio.to_thread(plane.stop)
        for server in servers.values():
            await asyncio.to_thread(server.stop(grace=None).wait, TIMEOUT_S)


def run(test: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(bounded())
