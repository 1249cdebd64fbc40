"""Instances that follow and ask each other over real gRPC, members by a shared store."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from between import Between

from modelmesh.errors import (
    Code,
    LoadFailed,
    LoadTimeout,
    ModelNotFound,
    NoCapacity,
    Quarantined,
    RuntimeUnavailable,
)
from modelmesh.management.peers import service
from modelmesh.peers import connected, messages
from modelmesh.peers.connected import ConnectedPeers
from modelmesh.peers.dialling import Dial, dial
from modelmesh.peers.protocol import (
    Ask,
    Back,
    Failed,
    Gone,
    Held,
    Joined,
    Load,
    Member,
    News,
    Provided,
    Silent,
    Told,
)
from modelmesh.policy.urgency import Why
from modelmesh.store.memory import MemoryStore

DEADLINE_S = 20.0
ASK = Ask("iris", 5.0, Why.SCALE, "3 requests wait", 1.5, 17, ("c",), 1, suspicion=True)


class Mesh:
    """What is asked of an instance, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.answer: Provided | Exception = Provided("b", 1, 5)
        self.takes_s = 0.0

    async def provide(self, asker: str, ask: Ask) -> Provided:
        return await self._answer("provide", asker, ask)

    async def load(self, asker: str, ask: Ask) -> Provided:
        return await self._answer("load", asker, ask)

    async def unload(self, asker: str, model: str, why: str) -> None:
        await self._answer("unload", asker, (model, why))

    async def _answer(self, what: str, asker: str, about: object) -> Provided:
        self.asked.append((what, asker, about))
        await asyncio.sleep(self.takes_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Node:
    """An instance, reduced to its peers."""

    def __init__(
        self, store: MemoryStore, folder: Path, id: str, epoch: int = 1, open_channel: Dial = dial
    ) -> None:
        self.socket = folder / f"{id}.sock"
        self.mesh = Mesh()
        self.peers = ConnectedPeers(store, Member(id, epoch, f"unix:{self.socket}", zone="z1"), open_channel)
        self.news: list[News] = []
        self._server: grpc.aio.Server | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.listen()
        self._listening = asyncio.create_task(self._hear())
        await self.peers.start(self.mesh)

    async def listen(self) -> None:
        self._server = grpc.aio.server()
        handlers = service(self.peers)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(handlers.name, handlers.methods),)
        )
        self._server.add_insecure_port(f"unix:{self.socket}")
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def deafen(self) -> None:
        """Nobody answers at its address any more."""
        assert self._server is not None
        await self._server.stop(None)

    async def _hear(self) -> None:
        while True:
            self.news += await self.peers.next_news()

    def seen(self, *kinds: type) -> list[News]:
        return [news for news in self.news if isinstance(news, kinds)]

    def told(self, id: str) -> dict[str, Held]:
        updates = [news.update for news in self.news if isinstance(news, Told) and news.id == id]
        return {held.model: held for update in updates for held in update.held}

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        ends_s = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < ends_s, f"{what}: not within {DEADLINE_S} s; news: {self.news}"
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        await self.peers.stop()
        await self.deafen()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)


@contextlib.asynccontextmanager
async def nodes(folder: Path, *ids: str) -> AsyncIterator[tuple[MemoryStore, list[Node]]]:
    store = MemoryStore()
    await store.open()
    there = [Node(store, folder, id) for id in ids]
    try:
        for node in there:
            await node.start()
        yield store, there
    finally:
        for node in there:
            await node.stop()
        await store.close()


def test_members_find_and_tell_each_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, "a", "b") as (_, (a, b)):
            await a.until(lambda: bool(a.seen(Joined)), "b is known to a")
            assert [news.member.id for news in b.seen(Joined) if isinstance(news, Joined)] == ["a"]
            failed = Failed("bad", Code.INVALID_ARGUMENT, "It is broken.", True, 1000)
            load = Load(100, -5, 1e-9, 2.0, 0.5, 1.0, draining=True)
            sequence = a.peers.announce([Held("iris", True, False, 7, 8, 0.5, 9)], [failed], load)
            await b.until(lambda: "iris" in b.told("a"), "the copy is told")
            assert b.told("a")["iris"] == Held("iris", True, False, 7, 8, 0.5, 9)
            updates = [news.update for news in b.seen(Told) if isinstance(news, Told)]
            assert updates[0].begins and updates[-1].sequence == sequence
            assert failed in [found for update in updates for found in update.failed]
            assert load in [update.load for update in updates]
            await a.peers.update_member(capacity_bytes=123)
            await b.until(
                lambda: any(isinstance(n, Joined) and n.member.capacity_bytes == 123 for n in b.news), "told"
            )
            c = Node(MemoryStore(), tmp_path, "c")
            assert c.peers.me.id == "c"

    asyncio.run(scenario())


def test_a_start_waits_for_its_address_and_not_for_those_that_are_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, "a", "b") as (store, (_, b)):
            await b.deafen()
            c = Node(store, tmp_path, "c")
            address = c.peers.me.address
            c.peers = ConnectedPeers(store, replace(c.peers.me, address=""))
            begun_s = time.monotonic()
            starting = asyncio.create_task(c.start())
            await asyncio.sleep(0.1)
            assert not starting.done()
            c.peers.reachable_at(address)
            await starting
            assert time.monotonic() - begun_s < connected.HEAR_S / 2, "b is known to be away at once"
            assert {member.id for member in c.peers.others} == {"a", "b"}

            await c.peers.stop()
            there = await dial(address)
            unload = there.channel.unary_unary(f"/{messages.SERVICE}/Unload")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await unload(b"")
            assert refused.value.details() == "This instance is starting, or stopping."
            await there.close()
            await c.stop()

    asyncio.run(scenario())


def test_one_that_stops_says_goodbye(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, "a", "b") as (_, (a, b)):
            await b.until(lambda: bool(b.seen(Told)), "a is heard")
            await a.peers.stop()
            await b.until(lambda: b.seen(Gone) == [Gone("a")], "a is gone")
            assert not b.seen(Silent)
            with pytest.raises(RuntimeUnavailable, match="The instance a is not known here, or gone"):
                await b.peers.load("a", ASK)

    asyncio.run(scenario())


def test_silence_is_suspected_and_is_the_end_only_without_a_lease(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, "a", "b") as (_, (a, b)):
            a.peers.announce([Held("iris", True)])
            await b.until(lambda: "iris" in b.told("a"), "a is heard")
            await a.deafen()
            await b.until(lambda: b.seen(Silent) == [Silent("a")], "a is silent")
            assert re.match("The instance a at .* does not answer", b.peers.trouble("a"))
            begun = sum(news.update.begins for news in b.seen(Told) if isinstance(news, Told))
            a.peers.announce([Held("rose", True)])
            await a.listen()
            await b.until(lambda: b.seen(Back) == [Back("a")] and "rose" in b.told("a"), "a is back")
            assert not b.peers.trouble("a")
            again = sum(news.update.begins for news in b.seen(Told) if isinstance(news, Told))
            assert again == begun, "it goes on where it was"
            await a.peers._presence.stop()
            await b.until(lambda: "a" not in b.peers._leased, "its lease is gone")
            assert not b.seen(Gone), "a lease alone changes nothing"
            await a.deafen()
            await b.until(lambda: b.seen(Gone) == [Gone("a")], "a is gone")

    asyncio.run(scenario())


def test_a_connection_that_carries_nothing_any_more_is_dialled_anew(tmp_path: Path) -> None:
    """Where packets were lost for long it would carry nothing for as long again."""

    async def scenario() -> None:
        async with nodes(tmp_path, "a") as (store, (a,)), Between(f"127.0.0.1:{a.port}") as between:
            b = Node(store, tmp_path, "b", open_channel=lambda _: dial(between.address))
            try:
                await b.start()
                a.peers.announce([Held("iris", True)])
                await b.until(lambda: "iris" in b.told("a"), "a is heard")
                between.lose()
                b.peers.reached("a", False)
                a.peers.announce([Held("rose", True)])
                await b.until(lambda: b.seen(Silent) == [Silent("a")], "a is silent")
                b.peers.reached("a", True)
                await b.until(lambda: b.seen(Back) == [Back("a")] and "rose" in b.told("a"), "a is back")
                assert not b.seen(Gone)
            finally:
                await b.stop()

    asyncio.run(scenario())


def test_another_life_takes_the_place_of_the_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, "a", "b") as (store, (a, b)):
            a.peers.announce([Held("old", True)])
            await b.until(lambda: "old" in b.told("a"), "a is heard")
            await a.deafen()
            second = Node(store, tmp_path, "a", epoch=2)
            await second.start()
            second.peers.announce([Held("new", True)])
            await b.until(lambda: "new" in b.told("a"), "the second life is heard")
            assert Gone("a") in b.news
            lives = [news.member.epoch for news in b.news if isinstance(news, Joined)]
            assert lives[0] == 1 and lives[-1] == 2
            await second.stop()

    asyncio.run(scenario())


def test_questions_reach_the_mesh_and_errors_come_back_as_they_were(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, "a", "b") as (_, (a, b)):
            await a.until(lambda: bool(a.seen(Joined)), "b is known")
            assert await a.peers.provide("b", ASK) == Provided("b", 1, 5)
            assert await a.peers.load("b", ASK) == Provided("b", 1, 5)
            await a.peers.unload("b", "iris", "it is not needed")
            (provide, load, unload) = b.mesh.asked
            for asked, what in ((provide, "provide"), (load, "load")):
                assert isinstance(asked, tuple) and asked[:2] == (what, "a")
                assert 0 < asked[2].deadline_s < 5.5
                assert asked[2] == Ask(**{**vars_of(ASK), "deadline_s": asked[2].deadline_s})
            assert unload == ("unload", "a", ("iris", "it is not needed"))
            errors = [
                LoadFailed("bad file", code=Code.INVALID_ARGUMENT, model="iris"),
                Quarantined("kept away", code=Code.INTERNAL, model="iris", retry_after_s=2.5),
                NoCapacity("no room", model="iris", retry_after_s=1.0),
                ModelNotFound.named("iris"),
            ]
            for error in errors:
                b.mesh.answer = error
                for ask in (a.peers.provide, a.peers.load):
                    with pytest.raises(type(error)) as raised:
                        await ask("b", ASK)
                    assert str(raised.value) == str(error) and raised.value.model == "iris"
                    assert raised.value.retry_after_s == error.retry_after_s

    asyncio.run(scenario())


def vars_of(ask: Ask) -> dict[str, object]:
    return {name: getattr(ask, name) for name in Ask.__dataclass_fields__}


def test_a_slow_load_is_waited_for_and_who_cannot_be_reached_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, "a", "b") as (_, (a, b)):
            await a.until(lambda: bool(a.seen(Told)), "b is heard")
            b.mesh.takes_s = 0.6
            assert await a.peers.provide("b", ASK) == Provided("b", 1, 5)
            asked = asyncio.create_task(a.peers.provide("b", ASK))
            await a.until(lambda: len(b.mesh.asked) == 2, "b is asked")
            await b.deafen()
            for asking in (asked, a.peers.provide("b", ASK), a.peers.load("b", ASK)):
                with pytest.raises(RuntimeUnavailable, match=r"The instance b .*does not answer"):
                    await asking

    asyncio.run(scenario())


def test_many_questions_are_answered_as_they_are_ready_and_forgotten_when_nobody_waits(
    tmp_path: Path,
) -> None:
    class Slow(Mesh):
        """Takes as many hundredths of a second as the model's name says."""

        def __init__(self) -> None:
            super().__init__()
            self.ended: list[str] = []

        async def load(self, asker: str, ask: Ask) -> Provided:
            if ask.model == "8000":
                raise asyncio.CancelledError
            try:
                await asyncio.sleep(int(ask.model) / 100)
            finally:
                self.ended.append(ask.model)
            return Provided(ask.model, 1, 5)

    async def scenario() -> None:
        async with nodes(tmp_path, "a", "b") as (_, (a, b)):
            await a.until(lambda: bool(a.seen(Joined)), "b is known")
            slow = b.peers.hosted = Slow()

            async def ask(model: int) -> str:
                return (await a.peers.load("b", replace(ASK, model=str(model)))).holder

            assert await asyncio.gather(*map(ask, (20, 10, 0))) == ["20", "10", "0"]
            assert slow.ended == ["0", "10", "20"]
            with pytest.raises(RuntimeUnavailable, match="The instance gave it up"):
                await ask(8000)
            given_up = asyncio.create_task(ask(10_000))
            with pytest.raises(LoadTimeout, match="9000 was not loaded in time"):
                await a.peers.load("b", replace(ASK, model="9000", deadline_s=0.05))
            given_up.cancel()
            await a.until(lambda: {"9000", "10000"} <= set(slow.ended), "both are forgotten")
            waiting = asyncio.create_task(ask(9001))
            await asyncio.sleep(0.05)
            await b.deafen()
            with pytest.raises(RuntimeUnavailable, match="b"):
                await waiting
            await b.listen()
            await a.until(lambda: bool(a.seen(Back)), "b is back")
            assert await ask(1) == "1"

    asyncio.run(scenario())
