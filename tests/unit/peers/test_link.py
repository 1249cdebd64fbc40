"""A link under virtual time: who is suspected when nothing is heard, and what is asked of whom then.

The other end says what a test has it say; nothing is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from modelmesh.errors import RuntimeUnavailable
from modelmesh.peers.dialling import Connection
from modelmesh.peers.link import DEAD_BEATS, Link
from modelmesh.peers.protocol import Ask, Back, Member, News, Provided, Silent, Told
from modelmesh.policy.urgency import Why
from modelmesh.testing.loop import VirtualLoop, run
from modelmesh.wire.generated import peers_pb2 as pb

ASK = Ask("iris", 60.0, Why.URGENT, "a test")


class Other:
    """The instance at the other end. It says something each quarter of a second, and answers what it is asked after `takes_s`,
    while its event loop runs."""

    def __init__(self) -> None:
        self.runs = asyncio.Event()
        self.runs.set()
        self.loses = False
        """What is said on connections there are never arrives."""
        self.takes_s = 0.0
        self.dialled = 0

    async def dial(self, address: str) -> Connection:
        self.dialled += 1
        return cast(Connection, _Connection(self))


class _Connection:
    def __init__(self, other: Other) -> None:
        self.channel = self
        self._other = other

    def unary_stream(self, method: str, **codecs: Any) -> Callable[..., _Stream]:
        return lambda request: _Stream(self._other)

    def stream_stream(self, method: str, **codecs: Any) -> Callable[[], _Talk]:
        return lambda: _Talk(self._other)

    async def close(self) -> None:
        pass


class _Stream:
    def __init__(self, other: Other) -> None:
        self._other = other
        self._begun = self._lost = False

    async def read(self) -> pb.Update:
        if self._begun:
            await asyncio.sleep(0.25)
        await self._other.runs.wait()
        self._lost = self._lost or self._other.loses
        if self._lost:
            await asyncio.Event().wait()
        self._begun = True
        return pb.Update(epoch=1, sequence=1, complete=True, load=pb.Load())

    def cancel(self) -> None:
        pass


class _Talk:
    def __init__(self, other: Other) -> None:
        self._other = other
        self._answers: asyncio.Queue[pb.Answer] = asyncio.Queue()
        self._answering: set[asyncio.Task[None]] = set()

    async def write(self, question: pb.Question) -> None:
        if question.WhichOneof("asked") != "withdrawn":
            self._answering.add(asyncio.create_task(self._answer(question.number)))

    async def _answer(self, number: int) -> None:
        await self._other.runs.wait()
        await asyncio.sleep(self._other.takes_s)
        await self._other.runs.wait()
        self._answers.put_nowait(
            pb.Answer(number=number, provided=pb.Provided(holder="b", epoch=1, sequence=7))
        )

    async def read(self) -> pb.Answer:
        return await self._answers.get()

    def cancel(self) -> None:
        pass


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, Other, list[News]]]:
    """A link that heard the other, and what it tells of silence."""
    other, news = Other(), list[News]()
    link = Link(
        "a",
        Member("b", 1, "b:1"),
        lambda one: None if isinstance(one, Told) else news.append(one),
        other.dial,
    )
    following = asyncio.create_task(link.run())
    await link.met.wait()
    try:
        yield link, other, news
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await link.close()


def test_one_whose_process_answers_pings_is_slow_and_not_suspected() -> None:
    async def scene() -> None:
        async with linked() as (link, other, news):
            other.runs.clear()
            asked = asyncio.create_task(link.provide(ASK))
            await asyncio.sleep(4.0)
            assert not news and not asked.done()
            other.runs.set()
            assert await asked == Provided("b", 1, 7)
            await asyncio.sleep(10.0)
            assert not news and other.dialled == 1

    run(scene())


@pytest.mark.parametrize("found_s", [0.0, 0.8, 2.0])
def test_one_whose_process_answers_no_pings_either_is_suspected_after_three_beats(found_s: float) -> None:
    """Whichever is found first."""

    async def scene() -> None:
        async with linked() as (link, other, news):
            other.runs.clear()
            await asyncio.sleep(found_s)
            assert not news
            link.reached(False)
            await asyncio.sleep(max(1.0 - found_s, 0.001))
            assert news == [Silent("b")] and link.silent
            other.runs.set()
            await asyncio.sleep(0.01)
            assert news == [Silent("b"), Back("b")]

    run(scene())


def test_one_that_says_something_is_not_suspected_whatever_its_pings() -> None:
    async def scene() -> None:
        async with linked() as (link, _, news):
            link.reached(False)
            await asyncio.sleep(10.0)
            assert not news

    run(scene())


def test_one_whose_event_loop_hangs_is_suspected_in_the_end() -> None:
    async def scene() -> None:
        async with linked() as (_, other, news):
            other.runs.clear()
            await asyncio.sleep(4.5)
            assert not news
            await asyncio.sleep(1.0)
            assert news == [Silent("b")] and other.dialled == 2, "perhaps it is only the connection"

    run(scene())


def test_the_connection_to_one_that_is_suspected_is_dialled_anew() -> None:
    async def scene() -> None:
        async with linked() as (link, other, news):
            other.runs.clear()
            link.reached(False)
            await asyncio.sleep(DEAD_BEATS * 0.25 + 0.5)
            assert news == [Silent("b")] and other.dialled == 2

    run(scene())


@pytest.mark.parametrize("found_s", [8.0, 17.0])
def test_one_that_is_reached_again_is_dialled_anew_at_once_where_the_connection_says_nothing(
    found_s: float,
) -> None:
    """The data plane has found a way. At the first of these times the link follows a dead connection, at the second it pauses
    between two."""

    async def scene() -> None:
        async with linked() as (link, other, news):
            other.loses = True
            link.reached(False)
            await asyncio.sleep(found_s)
            assert news == [Silent("b")]
            dialled, other.loses = other.dialled, False
            link.reached(True)
            await asyncio.sleep(0.5)
            assert news == [Silent("b"), Back("b")] and other.dialled == dialled + 1

    run(scene())


def test_nobody_is_suspected_for_what_the_event_loop_here_was_late_for() -> None:
    """What was said meanwhile was not read yet."""

    async def scene() -> None:
        async with linked() as (link, _, news):
            link.reached(False)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            for late_s in (1.0, 3.0, 10.0):
                loop.call_later(0.1, loop.advance, late_s)
                await asyncio.sleep(late_s + 1.0)
            assert not news

    run(scene())


def test_one_that_is_suspected_and_asked_all_the_same_has_a_moment_to_say_something() -> None:
    async def scene() -> None:
        async with linked() as (link, other, news):
            other.runs.clear()
            link.reached(False)
            await asyncio.sleep(1.0)
            assert news == [Silent("b")]
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            with pytest.raises(RuntimeUnavailable, match="The instance b does not answer"):
                await link.provide(ASK)
            assert loop.time() - began_s == pytest.approx(0.25)
            other.takes_s = 5.0
            loop.call_later(0.1, other.runs.set)
            assert await link.provide(ASK) == Provided("b", 1, 7), "it is there again, and takes its time"

    run(scene())
