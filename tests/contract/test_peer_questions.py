"""What `peers.protocol.Peers` promises of asking: of instances over gRPC, and of the network that tests play with.

What is told without being asked (members, copies, silence) differs in its times, and is tested for each on its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from modelmesh.errors import (
    Code,
    FailedPrecondition,
    LoadFailed,
    LoadTimeout,
    ModelMeshError,
    RuntimeUnavailable,
)
from modelmesh.management.peers import service
from modelmesh.peers.connected import ConnectedPeers
from modelmesh.peers.protocol import Ask, Member, Order, Peers, Provided, Remembered
from modelmesh.policy.urgency import Why
from modelmesh.store.memory import MemoryStore
from modelmesh.testing.dataplane import FakeDataPlane
from modelmesh.testing.network import Network

ASK = Ask("iris", 5.0, Why.ASKED, "a test", 1.5, 17, ("c",), 1)
ENTRIES = [
    Remembered(
        1,
        1_700_000_000.25,
        "placed",
        "iris",
        "Placed at b.",
        {"cost_s": 0.5, "candidates": 3, "runtime": "x"},
    ),
    Remembered(
        7,
        1_700_000_001.0,
        "a word of a later version",
        "iris",
        "Ünïcode.",
        {"size_bytes": 1 << 40, "left": -2},
    ),
]


class Asked:
    """The mesh of an instance that answers as it is told to."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []
        self.error: ModelMeshError | None = None
        self.takes_s = 0.0

    async def provide(self, asker: str, ask: Ask) -> Provided:
        await self._hear("provide", asker, ask)
        return Provided("b", 1, 5)

    async def load(self, asker: str, ask: Ask) -> Provided:
        await self._hear("load", asker, ask)
        return Provided("b", 1, 6)

    async def unload(self, asker: str, model: str, why: str) -> None:
        await self._hear("unload", asker, model, why)

    async def recall(self, asker: str, names: Sequence[str], limit: int) -> Sequence[Remembered]:
        await self._hear("recall", asker, list(names), limit)
        return ENTRIES[-limit:]

    async def order(self, asker: str, order: Order) -> None:
        await self._hear("order", asker, order)

    async def _hear(self, *what: object) -> None:
        self.heard.append(what)
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error


Pair = Callable[[Path], AbstractAsyncContextManager[tuple[Peers, Asked]]]


@asynccontextmanager
async def fake(folder: Path) -> AsyncIterator[tuple[Peers, Asked]]:
    network, asked = Network(random.Random(1)), Asked()
    a, b = (network.join(Member(id, 1, f"{id}:1"), FakeDataPlane()) for id in "ab")
    await a.start(Asked())
    await b.start(asked)
    yield a, asked
    await b.stop()
    await a.stop()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[Peers, Asked]]:
    store, asked = MemoryStore(), Asked()
    await store.open()
    servers: list[grpc.aio.Server] = []
    peers: list[ConnectedPeers] = []
    for id, mesh in (("b", asked), ("a", Asked())):
        one = ConnectedPeers(store, Member(id, 1, f"unix:{folder}/{id}.sock"))
        server = grpc.aio.server()
        handlers = service(one)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(handlers.name, handlers.methods),)
        )
        server.add_insecure_port(one.me.address)
        await server.start()
        await one.start(mesh)
        servers.append(server)
        peers.append(one)
    try:
        yield peers[1], asked
    finally:
        for one in peers:
            await one.stop()
        for server in servers:
            await server.stop(None)
        await store.close()


@pytest.fixture(params=[fake, connected], ids=["fake", "connected"])
def pair(request: pytest.FixtureRequest) -> Pair:
    made: Pair = request.param
    return made


def play(pair: Pair, folder: Path, scene: Callable[[Peers, Asked], Coroutine[None, None, None]]) -> None:
    async def played() -> None:
        async with pair(folder) as (peers, asked):
            await scene(peers, asked)

    asyncio.run(played())


def test_questions_and_answers_arrive_as_they_are(pair: Pair, tmp_path: Path) -> None:
    async def scene(peers: Peers, asked: Asked) -> None:
        assert await peers.provide("b", ASK) == Provided("b", 1, 5)
        assert await peers.load("b", ASK) == Provided("b", 1, 6)
        await peers.unload("b", "iris", "a test")
        assert list(await peers.recall("b", ["iris", "v"], 10, 5.0)) == ENTRIES
        assert list(await peers.recall("b", ["iris"], 1, 5.0)) == ENTRIES[-1:]
        for order in Order:
            await peers.order("b", order)
        # Of a deadline what is left arrives.
        heard = [
            tuple(replace(each, deadline_s=5.0) if isinstance(each, Ask) else each for each in what)
            for what in asked.heard
        ]
        assert heard == [
            ("provide", "a", ASK),
            ("load", "a", ASK),
            ("unload", "a", "iris", "a test"),
            ("recall", "a", ["iris", "v"], 10),
            ("recall", "a", ["iris"], 1),
            *(("order", "a", order) for order in Order),
        ]

    play(pair, tmp_path, scene)


@pytest.mark.parametrize(
    "error",
    [
        LoadFailed("It is no model.", code=Code.INVALID_ARGUMENT, model="iris"),
        FailedPrecondition("The instance is alone."),
    ],
)
def test_errors_keep_their_kind_and_words(pair: Pair, tmp_path: Path, error: ModelMeshError) -> None:
    async def scene(peers: Peers, asked: Asked) -> None:
        asked.error = error
        calls: list[Callable[[], Coroutine[None, None, object]]] = [
            lambda: peers.load("b", ASK),
            lambda: peers.recall("b", ["iris"], 1, 5.0),
            lambda: peers.order("b", Order.CORDON),
        ]
        for call in calls:
            with pytest.raises(type(error)) as raised:
                await call()
            assert str(raised.value) == str(error)

    play(pair, tmp_path, scene)


def test_who_is_not_there_or_late_is_unavailable(pair: Pair, tmp_path: Path) -> None:
    async def scene(peers: Peers, asked: Asked) -> None:
        for call in (
            peers.load("z", ASK),
            peers.recall("z", ["iris"], 1, 5.0),
            peers.order("z", Order.DRAIN),
        ):
            with pytest.raises(RuntimeUnavailable, match="z"):
                await call
        asked.takes_s = 5.0
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(RuntimeUnavailable, match="b"):
            await peers.recall("b", ["iris"], 1, 0.2)
        assert asyncio.get_running_loop().time() - began_s < 2.0

    play(pair, tmp_path, scene)


def test_a_load_that_takes_longer_than_is_waited_for_is_told_as_such(pair: Pair, tmp_path: Path) -> None:
    """And not as an instance that does not answer: another one would not be faster."""

    async def scene(peers: Peers, asked: Asked) -> None:
        asked.takes_s = 5.0
        for call in (peers.provide("b", hasty), peers.load("b", hasty)):
            with pytest.raises(LoadTimeout, match="Model iris was not loaded in time"):
                await call

    hasty = replace(ASK, deadline_s=0.3)
    play(pair, tmp_path, scene)
