"""What followers are told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from modelmesh.errors import Code
from modelmesh.peers import picture
from modelmesh.peers.picture import HEARTBEAT_S, Picture
from modelmesh.peers.protocol import Failed, Held, Load, Update
from modelmesh.testing.loop import run

LOAD = Load(100, 50, 0.0, 1.0, 0.5, 0.0)


class Follower:
    """Takes a stream in, as the mesh would."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.failed: dict[str, Failed] = {}
        self.load: Load | None = None
        self.epoch = self.sequence = 0
        self.begun = 0

    def take(self, update: Update) -> None:
        if update.begins:
            self.begun += 1
            self.held.clear()
            self.failed.clear()
        for held in update.held:
            if held.loaded or held.loading:
                self.held[held.model] = held
            else:
                self.held.pop(held.model, None)
        for failed in update.failed:
            if failed.expires_in_ms:
                self.failed[failed.model] = failed
            else:
                self.failed.pop(failed.model, None)
        self.load = update.load or self.load
        self.epoch, self.sequence = update.epoch, update.sequence

    async def hear(self, stream: AsyncIterator[Update], until: int) -> None:
        complete = False
        while self.sequence < until or not self.begun or not complete:
            update = await anext(stream)
            self.take(update)
            complete = update.complete


def test_a_snapshot_in_pieces_then_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "PIECE", 10)

    async def scene() -> None:
        told = Picture(7)
        told.announce([Held(f"m{number}", True) for number in range(35)], load=LOAD)
        stream, follower = told.follow(0, 0), Follower()
        pieces = [await anext(stream) for _ in range(4)]
        assert [len(piece.held) for piece in pieces] == [10, 10, 10, 5]
        assert [(piece.begins, piece.complete) for piece in pieces] == [
            (True, False),
            (False, False),
            (False, False),
            (False, True),
        ]
        for piece in pieces:
            follower.take(piece)
        assert len(follower.held) == 35 and follower.load == LOAD
        failed = Failed("bad", Code.INVALID_ARGUMENT, "It is broken.", True, 1000)
        until = told.announce([Held("m3", False), Held("new", False, loading=True)], [failed])
        await follower.hear(stream, until)
        assert "m3" not in follower.held and follower.held["new"].loading
        assert follower.failed == {"bad": failed} and follower.begun == 1

    run(scene())


def test_there_is_a_word_all_the_time_and_an_end() -> None:
    async def scene() -> None:
        told = Picture(1)
        stream, loop = told.follow(0, 0), asyncio.get_running_loop()
        assert (await anext(stream)).begins
        await anext(stream)
        at_s = loop.time()
        for _ in range(4):
            update = await anext(stream)
            assert not update.held and not update.begins
        assert loop.time() - at_s == pytest.approx(4 * HEARTBEAT_S, rel=0.1)
        told.announce(load=LOAD)
        assert (await anext(stream)).load == LOAD
        told.close()
        assert [update async for update in stream] == []

    run(scene())


def test_a_load_that_begins_and_is_soon_done_is_told_once() -> None:
    async def scene() -> None:
        told = Picture(1)
        stream, loop = told.follow(0, 0), asyncio.get_running_loop()
        await anext(stream)
        await anext(stream)
        following = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        at_s = loop.time()
        told.announce([Held("iris", False, loading=True)])
        await asyncio.sleep(picture.GATHER_S / 2)
        told.announce([Held("iris", True)])
        assert (await following).held == (Held("iris", True),)
        assert loop.time() - at_s == pytest.approx(picture.GATHER_S)

    run(scene())


def test_who_was_away_goes_on_where_it_was_unless_it_missed_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        told = Picture(3)
        first = told.announce([Held("a", True)])
        told.announce([Held("b", True)])
        assert [held.model for held in (await anext(told.follow(3, first))).held] == ["b"]
        for epoch, sequence in ((2, first), (3, 99)):
            assert (await anext(told.follow(epoch, sequence))).begins
        told.announce([Held(f"m{number}", True) for number in range(picture.LOG_MAX + 1)])
        again = await anext(told.follow(3, first))
        assert again.begins and not again.complete

    run(scene())


@pytest.mark.parametrize("seed", range(20))
def test_a_follower_that_comes_and_goes_ends_with_the_whole_picture(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "PIECE", 5)
    monkeypatch.setattr(picture, "LOG_MAX", 30)
    rng = random.Random(seed)

    async def scene() -> None:
        told, follower = Picture(1), Follower()
        whole: dict[str, Held] = {}
        for _ in range(60):
            changes = [
                Held(f"m{rng.randrange(20)}", rng.random() < 0.7, size_bytes=rng.randrange(100))
                for _ in range(rng.randrange(12))
            ]
            until = told.announce(changes)
            for held in changes:
                whole.pop(held.model, None)
                if held.loaded:
                    whole[held.model] = held
            if rng.random() < 0.5:
                complete = True
                stream = told.follow(follower.epoch, follower.sequence)
                for _ in range(rng.randrange(1, 5)):
                    update = await anext(stream)
                    follower.take(update)
                    complete = update.complete
                if not complete:
                    follower.sequence = 0
                await stream.aclose()  # type: ignore[attr-defined]
        await follower.hear(told.follow(follower.epoch, follower.sequence), until)
        assert follower.held == whole

    run(scene())
