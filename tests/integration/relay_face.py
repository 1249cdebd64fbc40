"""A relay in front of model servers whose wires can be cut, and clients to ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import grpc

from modelmesh.dataplane.protocol import DataPlaneConfig, Event, Name, NameKind, Replica, Route, Target
from modelmesh.dataplane.relay import Relay

TIMEOUT_S = 20.0
METHOD = "/test.Echo/Call"
Metadata: TypeAlias = dict[str, str]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Serve: TypeAlias = Callable[[bytes, Any], Awaitable[bytes]]
E = TypeVar("E", bound=Event)


async def echo(request: bytes, context: Context) -> bytes:
    return request


class Wire:
    """A unix socket that passes bytes on to another one, until it is cut: then its connections die and nobody listens."""

    def __init__(self, path: Path, behind: Path) -> None:
        self.path = path
        self._behind = behind
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()

    async def mend(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, str(self.path))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing = asyncio.create_task(self._pass(reader, writer))
        self._passing.add(passing)
        passing.add_done_callback(self._passing.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._writers.add(writer)
        with suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_unix_connection(str(self._behind))
            ends.add(inner_writer)
            self._writers.add(inner_writer)
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        for end in ends:
            end.transport.abort()
        self._writers -= ends

    async def cut(self) -> None:
        for _ in range(
            5
        ):  # a connection accepted just now is lost, and complained of, when its server closes first
            await asyncio.sleep(0)
        if self._server is not None:
            self._server.close()
            self._server = None
        self.path.unlink(missing_ok=True)
        for _ in range(3):  # what was accepted just now begins to pass, what is aborted closes its socket
            for writer in list(self._writers):
                writer.transport.abort()
            if self._passing:
                await asyncio.wait(self._passing, timeout=5.0)
            await asyncio.sleep(0)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()


@dataclass
class Upstream(grpc.GenericRpcHandler):
    """A model server. A test may replace `serve`, or `stream` for streaming methods (their name ends with "Stream")."""

    wire: Wire
    serve: Serve = echo
    requests: list[tuple[Metadata, bytes]] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0
    running_max: int = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        if str(details.method).endswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(self._unary)

    async def _unary(self, request: bytes, context: Context) -> bytes:
        self.requests.append((metadata(context.invocation_metadata()), request))
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            return await self.serve(request, context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        self.requests.append((metadata(context.invocation_metadata()), b""))
        async for request in requests:
            yield await self.serve(request, context)


def metadata(pairs: Any) -> Metadata:
    """Text metadata; binary values as latin-1."""
    return {key: value if isinstance(value, str) else value.decode("latin-1") for key, value in pairs or ()}


@dataclass(frozen=True)
class Reply:
    code: grpc.StatusCode
    details: str
    message: bytes
    headers: Metadata
    trailers: Metadata


@dataclass
class Face:
    """`upstreams[i]` is the target i + 1."""

    plane: Relay
    address: str
    channel: grpc.aio.Channel
    upstreams: list[Upstream]
    control: Upstream
    events: list[Event] = field(default_factory=list)
    rest: str = ""
    peer: str = ""

    def serve(self, model: str, *replicas: Replica, name: str = "") -> None:
        """Publish a route, and the name (the model's own by default) for it in all kinds."""
        self.plane.publish([Route(model, replicas)])
        self.plane.publish_names([(Name(kind, name or model), model) for kind in NameKind])

    def ask(
        self,
        model: str = "iris",
        message: bytes = b"hello",
        *,
        method: str = METHOD,
        timeout_s: float | None = TIMEOUT_S,
        headers: tuple[tuple[str, str | bytes], ...] | None = None,
        compression: grpc.Compression | None = None,
        channel: grpc.aio.Channel | None = None,
    ) -> asyncio.Task[Reply]:
        """Call; the task may be cancelled."""
        if headers is None:
            headers = (("mm-model-id", model),)
        call = (channel or self.channel).unary_unary(method)
        return asyncio.ensure_future(_asked(call, message, timeout_s, headers, compression))

    async def until_code(self, code: grpc.StatusCode, ask: Callable[[], Awaitable[Reply]]) -> None:
        """Asks again and again until it gets this code."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                if (await ask()).code == code:
                    return
                await asyncio.sleep(0.01)

    async def until(self, condition: Callable[[], bool], what: str = "the condition") -> None:
        """Takes events while it waits."""
        give_up_s = asyncio.get_running_loop().time() + TIMEOUT_S
        while True:
            self.events += self.plane.take_events()
            if condition():
                return
            if asyncio.get_running_loop().time() > give_up_s:
                raise TimeoutError(f"{what} did not come; events: {self.events}, {self.plane.stats()}")
            await asyncio.sleep(0.002)

    async def event(self, kind: type[E], **fields: object) -> E:
        """The first event of this kind whose fields are these; it and those before it are forgotten."""

        def matches(event: Event) -> bool:
            return isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items())

        await self.until(lambda: any(map(matches, self.events)), f"{kind.__name__} {fields}")
        at = next(at for at, event in enumerate(self.events) if matches(event))
        found = self.events[at]
        del self.events[: at + 1]
        assert isinstance(found, kind)
        return found


async def _asked(
    call: Any,
    message: bytes,
    timeout_s: float | None,
    headers: tuple[tuple[str, str | bytes], ...],
    compression: grpc.Compression | None,
) -> Reply:
    pending = call(message, timeout=timeout_s, metadata=headers, compression=compression)
    try:
        answer = await pending
    except grpc.aio.AioRpcError as error:
        initial, trailing = metadata(error.initial_metadata()), metadata(error.trailing_metadata())
        return Reply(error.code(), error.details() or "", b"", initial, trailing)
    initial, trailing = (
        metadata(await pending.initial_metadata()),
        metadata(await pending.trailing_metadata()),
    )
    return Reply(grpc.StatusCode.OK, "", answer, initial, trailing)


CLIENT_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 1 << 20),
]
SERVER_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Doors:
    """Requests wait in the model until they are let out, one by one, oldest first."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, asyncio.Event]] = []

    async def serve(self, request: bytes, context: Context) -> bytes:
        door = asyncio.Event()
        self.waiting.append((request, door))
        await door.wait()
        return request

    async def let_out(self, face: Face) -> bytes:
        await face.until(lambda: bool(self.waiting), "a request in the model")
        request, door = self.waiting.pop(0)
        door.set()
        return request


@asynccontextmanager
async def relay_face(
    folder: Path,
    *,
    targets: int = 1,
    signals_loss: bool = True,
    max_concurrency: int = 0,
    methods: dict[str, tuple[int, ...]] | None = None,
    allow_any_method: bool = True,
    **config: Any,
) -> AsyncIterator[Face]:
    """A relay, `targets` model servers behind wires, and a control plane."""
    upstreams: list[Upstream] = []
    servers: list[grpc.aio.Server] = []
    for at in range(targets + 1):
        behind = folder / f"behind-{at}.sock"
        upstream = Upstream(Wire(folder / f"wire-{at}.sock", behind))
        server = grpc.aio.server(handlers=[upstream], options=SERVER_OPTIONS)
        server.add_insecure_port(f"unix:{behind}")
        await server.start()
        await upstream.wire.mend()
        upstreams.append(upstream)
        servers.append(server)
    control = upstreams.pop()
    settings = {"grpc_port": 0, "rest_port": -1, "threads": 2, **config}
    plane = Relay(DataPlaneConfig(control_socket=str(control.wire.path), **settings))
    addresses = plane.start()
    plane.set_targets(
        [
            Target(
                at + 1,
                f"unix:{upstream.wire.path}",
                max_concurrency,
                signals_loss,
                tuple((methods or {}).items()),
                allow_any_method,
            )
            for at, upstream in enumerate(upstreams)
        ],
        [],
    )
    channel = grpc.aio.insecure_channel(addresses.grpc, options=CLIENT_OPTIONS)
    try:
        yield Face(
            plane, addresses.grpc, channel, upstreams, control, rest=addresses.rest, peer=addresses.peer
        )
    finally:
        await channel.close()
        await asyncio.to_thread(plane.stop)
        for upstream in [*upstreams, control]:
            await upstream.wire.cut()
        for server in servers:
            await server.stop(grace=None)


def run(test: Awaitable[None]) -> None:
    """An async test, with a deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(bounded())
