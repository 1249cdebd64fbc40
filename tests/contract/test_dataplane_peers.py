"""What two data planes promise that know each other as instances: one suite for relays and for the simulator's fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from between import Between
from dataplane_world import IRIS, World, fake_world, relay_world, run

from modelmesh.dataplane.protocol import (
    Fault,
    NotHere,
    Replica,
    Retired,
    Route,
    Target,
    TargetBack,
    TargetLost,
)
from modelmesh.errors import Code
from modelmesh.testing.dataplane import FakeDataPlane

THERE = 101
"""The other instance among the targets."""
COPY = Replica(1000, THERE)
"""What it is believed to hold."""
SILENT_S = 0.75


class Way(Protocol):
    """From here to there: connections may break, or stay while nothing passes."""

    def cut(self) -> None: ...
    def hold(self) -> None: ...
    def go_on(self) -> None: ...


class FakeWay:
    def __init__(self, here: FakeDataPlane, there: FakeDataPlane, address: str) -> None:
        self._here, self._there, self._address = here, there, address
        self._passes = True

    def dial(self, address: str) -> FakeDataPlane | None:
        return self._there if self._passes else None

    def delay(self) -> float:
        return 0.0005

    def cut(self) -> None:
        self._passes = False
        self._here.lose_address(self._address)

    def hold(self) -> None:
        self._passes = False
        asyncio.get_running_loop().call_later(SILENT_S, self._missed)

    def _missed(self) -> None:
        if not self._passes:
            self._here.lose_address(self._address, silent=True)

    def go_on(self) -> None:
        self._passes = True
        self._here.find_address(self._address)


@dataclass
class Pair:
    """`here` is what clients ask."""

    here: World
    there: World
    way: Way


@asynccontextmanager
async def fake_pair(folder: Path) -> AsyncIterator[Pair]:
    async with fake_world(folder) as here, fake_world(folder) as there:
        assert isinstance(here.plane, FakeDataPlane) and isinstance(there.plane, FakeDataPlane)
        way = FakeWay(here.plane, there.plane, there.clients.peer)
        here.plane.network = way
        here.plane.set_targets([Target(THERE, there.clients.peer, peer=True)], [])
        yield Pair(here, there, way)


@asynccontextmanager
async def relay_pair(folder: Path) -> AsyncIterator[Pair]:
    for name in ("here", "there"):
        (folder / name).mkdir()
    async with (
        relay_world(folder / "there") as there,
        Between(there.clients.peer) as between,
        relay_world(folder / "here") as here,
    ):
        here.plane.set_targets([Target(THERE, between.address, peer=True)], [])
        yield Pair(here, there, between)


@pytest.fixture(params=[fake_pair, relay_pair], ids=["fake", "relay"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    return lambda: request.param(tmp_path)


def hold_there(pair: Pair) -> None:
    """A copy there, and nothing but the belief in it here."""
    pair.there.plane.publish([Route("iris@1", (Replica(10, 1),))])
    pair.here.route("iris@1", COPY)


def test_a_copy_elsewhere_serves_and_its_holder_counts(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            for _ in range(3):
                assert (await p.here.ask())[:2] == (Code.OK, "iris@1")
            (row,) = p.there.plane.take_usage()
            assert (row.model, row.replica_id, row.requests) == ("iris@1", 10, 3)
            assert not p.there.plane.take_events() and not p.here.plane.take_events()

    run(test())


def test_a_copy_here_is_preferred(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            p.here.route("iris@1", Replica(20, 2), COPY)
            for _ in range(8):
                assert (await p.here.ask()).code == Code.OK
            assert p.there.plane.take_usage() == []

    run(test())


def test_what_is_not_there_parks_here_and_nobody_waits_there(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            p.here.route("iris@1", COPY)
            asked = [p.here.ask() for _ in range(4)]
            assert await p.here.event(NotHere) == NotHere("iris@1", COPY.id)
            assert (await p.here.event(Fault)).model == "iris@1"
            await p.here.parked("iris@1", 4)
            assert not p.there.plane.take_events() and not p.there.plane.take_waiting()
            p.here.plane.publish([Route("iris@1", (Replica(20, 2),))])
            assert {answer.code for answer in await asyncio.gather(*asked)} == {Code.OK}

    run(test())


def test_a_name_is_not_resolved_again_there(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            p.there.plane.publish_names([(IRIS, "iris@0")])
            assert (await p.here.ask())[:2] == (Code.OK, "iris@1")

    run(test())


def test_nothing_is_sent_on_twice(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            p.here.route("iris@1", COPY)
            p.there.plane.set_targets([Target(THERE, p.here.clients.peer, peer=True)], [])
            p.there.route("iris@1", COPY)
            asked = p.here.ask()
            await p.here.event(NotHere)
            await p.here.parked("iris@1", 1)
            asked.cancel()

    run(test())


def test_a_copy_that_retires_there_is_not_here(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            first = p.here.ask(execution_s=0.4)
            await p.there.in_flight(10, 1)
            p.there.plane.retire([(10, 7)], 60_000)
            second = p.here.ask()
            await p.here.event(NotHere)
            assert (await first).code == Code.OK
            assert await p.there.event(Retired) == Retired(10, 7, True)
            assert not p.there.events, "nobody is waited for there"
            p.there.plane.publish([Route("iris@1", (Replica(10, 1),))])
            p.here.plane.publish([Route("iris@1", (Replica(1001, THERE),))])
            assert (await second).code == Code.OK

    run(test())


def test_a_copy_lost_by_its_model_server_is_told_on_both_sides(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            p.there.gone.add(10)
            asked = p.here.ask()
            assert await p.there.event(NotHere) == NotHere("iris@1", 10)
            assert await p.here.event(NotHere) == NotHere("iris@1", COPY.id)
            p.here.plane.publish([Route("iris@1", (Replica(20, 2),))])
            assert (await asked).code == Code.OK

    run(test())


def test_a_drained_instance_serves_others(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            p.there.plane.drain(60_000)
            assert (await p.here.ask()).code == Code.OK
            p.there.plane.publish([Route("iris@1", ())])
            asked = p.here.ask()
            await p.here.event(NotHere)
            asked.cancel()

    run(test())


def test_a_broken_instance_costs_only_time(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            asked = [p.here.ask(execution_s=30.0) for _ in range(4)]
            await p.there.in_flight(10, 4)
            p.way.cut()
            await p.here.event(TargetLost, target_id=THERE)
            await p.here.parked("iris@1", 4)
            p.here.plane.publish([Route("iris@1", (Replica(20, 2),))])
            await p.here.in_flight(20, 4)
            p.here.plane.set_targets([], [2])
            assert {answer.code for answer in await asyncio.gather(*asked)} == {Code.UNAVAILABLE}

    run(test())


def test_a_silent_instance_is_told_and_who_asked_it_parks(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            assert (await p.here.ask()).code == Code.OK
            p.way.hold()
            moving = p.here.ask()
            await p.here.event(TargetLost, target_id=THERE)
            await p.here.parked("iris@1", 1)
            coming = p.here.ask()
            await p.here.parked("iris@1", 2)
            p.here.plane.publish([Route("iris@1", (COPY, Replica(20, 2)))])
            for asked in (moving, coming):
                assert (await asked).code == Code.OK
            assert {row.replica_id for row in p.here.plane.take_usage() if row.requests} >= {20}
            p.way.go_on()
            await p.here.event(TargetBack, target_id=THERE)

    run(test())


def test_who_parked_goes_there_when_it_is_back(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            assert (await p.here.ask()).code == Code.OK
            p.way.hold()
            asked = [p.here.ask() for _ in range(3)]
            await p.here.parked("iris@1", 3)
            p.way.go_on()
            assert {answer.code for answer in await asyncio.gather(*asked)} == {Code.OK}

    run(test())


def test_to_leave_a_silent_instance_is_no_crash(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            asked = p.here.ask(execution_s=30.0)
            await p.there.in_flight(10, 1)
            p.way.hold()
            await p.here.parked("iris@1", 1)
            for target_id, code in ((1, None), (2, Code.UNAVAILABLE)):
                p.here.plane.publish([Route("iris@1", (Replica(10 * target_id, target_id),))])
                await p.here.in_flight(10 * target_id, 1)
                p.here.plane.set_targets([], [target_id])
                if code is None:
                    await p.here.parked("iris@1", 1)
                else:
                    assert (await asked).code == code

    run(test())


def test_who_moved_once_waits_the_next_time(pair: Any) -> None:
    async def test() -> None:
        async with pair() as p:
            hold_there(p)
            asked = p.here.ask(execution_s=2.0)
            await p.there.in_flight(10, 1)
            p.way.hold()
            await p.here.parked("iris@1", 1)
            p.way.go_on()
            await p.here.event(TargetBack)
            await p.here.in_flight(COPY.id, 1)
            p.way.hold()
            await p.here.event(TargetLost)
            assert not p.here.plane.take_waiting()
            p.way.go_on()
            assert (await asked).code == Code.OK

    run(test())
