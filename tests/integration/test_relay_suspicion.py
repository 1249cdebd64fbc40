"""Another instance falls silent without its connections breaking: who moves, who waits, and when it is believed again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from between import Between
from relay_face import Context, Face, relay_face, run

from modelmesh.dataplane.protocol import Fault, Replica, Route, Target, TargetBack, TargetLost

Code = grpc.StatusCode
THERE = 101
IRIS = Replica(1000, THERE)


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Face, Face, Between]]:
    """An instance that clients ask, another one, and what is between them. The model is `iris` in both."""
    for name in ("here", "there"):
        (folder / name).mkdir()
    async with (
        relay_face(folder / "there", peer_port=0) as there,
        Between(there.peer) as between,
        relay_face(folder / "here", threads=1) as here,
    ):
        here.plane.set_targets([Target(THERE, between.address, peer=True)], [])
        here.serve("iris", IRIS)
        there.serve("iris", Replica(1, 1))
        assert (await here.ask()).code == Code.OK
        yield here, there, between


class Gate:
    """A model that answers when it is told to."""

    def __init__(self, face: Face) -> None:
        self.open = asyncio.Event()
        face.upstreams[0].serve = self._serve

    async def _serve(self, request: bytes, context: Context) -> bytes:
        await self.open.wait()
        return request


def test_kept_requests_move_and_streams_wait(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there, between):
            call = here.channel.stream_stream("/test.Echo/Stream")(metadata=(("mm-model-id", "iris"),))
            await call.write(b"one")
            assert await call.read() == b"one"
            gate = Gate(there)
            moves, stays = here.ask(message=b"x" * 100_000), here.ask(message=b"y" * 3_000_000)
            await there.until(lambda: there.upstreams[0].running == 2)
            between.hold()
            began_s = time.monotonic()
            await here.event(TargetLost, target_id=THERE)
            assert 0.5 <= time.monotonic() - began_s < 5.0
            await here.event(Fault, model="iris")
            assert here.plane.stats().parked_requests == 1
            coming = here.ask()
            await here.until(lambda: here.plane.stats().parked_requests == 2)
            here.plane.publish([Route("iris", (IRIS, Replica(1, 1)))])
            assert (await moves).message == b"x" * 100_000
            assert (await coming).code == Code.OK
            await call.write(b"two")
            gate.open.set()
            between.go_on()
            await here.event(TargetBack, target_id=THERE)
            assert await call.read() == b"two"
            assert len((await stays).message) == 3_000_000
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert here.plane.stats().kept_bytes == 0

    run(test())


def test_who_parked_goes_there_when_it_answers_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, _, between):
            between.hold()
            asked = [here.ask() for _ in range(3)]
            await here.event(TargetLost)
            await here.until(lambda: here.plane.stats().parked_requests == 3)
            between.go_on()
            assert {reply.code for reply in await asyncio.gather(*asked)} == {Code.OK}
            await here.event(TargetBack)

    run(test())


def test_a_connection_that_stays_silent_is_not_waited_for(tmp_path: Path) -> None:
    """As after lost packets, which TCP sends again ever more rarely: the instance is back once it answers on a new connection."""

    async def test() -> None:
        async with two(tmp_path) as (here, _, between):
            between.lose()
            asked = here.ask()
            await here.event(TargetLost)
            assert (await asked).code == Code.OK
            await here.event(TargetBack)
            assert between.accepted == 2
            for _ in range(3):
                assert (await here.ask()).code == Code.OK
            assert not here.events

    run(test())


def test_a_request_leaves_one_silent_instance_after_the_other(tmp_path: Path) -> None:
    """Who is cut off from all of them notices that bit by bit, and serves it itself in the end."""

    async def test() -> None:
        async with two(tmp_path) as (here, there, between):
            gate = Gate(there)
            async with Between(there.peer) as another:
                here.plane.set_targets([Target(THERE + 1, another.address, peer=True)], [])
                asked = here.ask()
                await there.until(lambda: there.upstreams[0].running == 1)
                between.hold()
                await here.until(lambda: here.plane.stats().parked_requests == 1)
                here.plane.publish([Route("iris", (Replica(1001, THERE + 1),))])
                await there.until(lambda: len(there.upstreams[0].requests) == 3)
                another.hold()
                await here.until(lambda: here.plane.stats().parked_requests == 1)
                here.plane.publish([Route("iris", (Replica(1, 1),))])
                assert (await asked).code == Code.OK
                gate.open.set()

    run(test())


def test_a_request_leaves_an_instance_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there, between):
            gate = Gate(there)
            asked = here.ask()
            await there.until(lambda: there.upstreams[0].running == 1)
            between.hold()
            await here.until(lambda: here.plane.stats().parked_requests == 1)
            between.go_on()
            await here.event(TargetBack)
            await there.until(lambda: len(there.upstreams[0].requests) == 3)
            between.hold()
            await here.event(TargetLost)
            gate.open.set()
            assert here.plane.stats().parked_requests == 0
            between.go_on()
            assert (await asked).code == Code.OK

    run(test())


def test_an_idle_instance_is_watched_though_no_route_leads_there(tmp_path: Path) -> None:
    """The control plane wants to know whether it lives."""

    async def test() -> None:
        async with two(tmp_path) as (here, _, between):
            here.plane.publish([Route("iris", ())])
            here.plane.take_usage()
            between.hold()
            await here.event(TargetLost)
            between.go_on()
            await here.event(TargetBack)

    run(test())


@pytest.mark.slow
def test_an_instance_that_stays_silent_is_given_up(tmp_path: Path) -> None:
    """After ten seconds; then what waited for it parks, or is told."""

    async def test() -> None:
        async with two(tmp_path) as (here, there, between):
            gate = Gate(there)
            stays = here.ask(message=b"y" * 3_000_000, timeout_s=50.0)
            await there.until(lambda: there.upstreams[0].running == 1)
            between.hold()
            began_s = time.monotonic()
            reply = await stays
            assert reply.code == Code.UNAVAILABLE and "did not answer" in reply.details
            assert 9.0 < time.monotonic() - began_s < 20.0
            gate.open.set()

    run(test())
