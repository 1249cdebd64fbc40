"""Calls that are done together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from modelmesh.errors import InvalidInput, ModelMeshError, StoreUnavailable
from modelmesh.mesh.gathering import Gathering
from modelmesh.testing.loop import run


class Doubling:
    """Takes a second for any number of them. Odd ones are refused."""

    def __init__(self, at_once: int = 10) -> None:
        self.done: list[list[int]] = []
        self.away: Exception | None = None
        self.gathering = Gathering(self._do, at_once)

    async def _do(self, items: Sequence[int]) -> list[int | ModelMeshError]:
        self.done.append(list(items))
        await asyncio.sleep(1.0)
        if self.away is not None:
            raise self.away
        return [2 * item if item % 2 == 0 else InvalidInput(f"{item} is odd.") for item in items]

    async def all(self, *items: int) -> list[int | BaseException]:
        return await asyncio.gather(*map(self.gathering.one, items), return_exceptions=True)


def test_what_comes_while_one_is_done_is_done_together_and_each_gets_its_own_answer() -> None:
    async def scene() -> None:
        doubling = Doubling(at_once=3)
        first = asyncio.create_task(doubling.gathering.one(0))
        await asyncio.sleep(0.5)
        answers = await doubling.all(2, 3, 4, 6)
        assert doubling.done == [[0], [2, 3, 4], [6]]
        assert await first == 0
        assert [answers[0], str(answers[1]), *answers[2:]] == [4, "3 is odd.", 8, 12]
        assert await doubling.gathering.one(8) == 16, "and one alone later"

    run(scene())


def test_what_keeps_all_from_being_done_is_told_to_all_and_to_nobody_later() -> None:
    async def scene() -> None:
        doubling = Doubling()
        for doubling.away in (StoreUnavailable("It is away."), ZeroDivisionError()):
            answers = await doubling.all(2, 4)
            assert answers == [doubling.away, doubling.away]
        doubling.away = None
        assert await doubling.all(2, 4) == [4, 8]

    run(scene())


def test_who_gave_up_before_its_turn_is_left_out() -> None:
    async def scene() -> None:
        doubling = Doubling()
        calls = [asyncio.create_task(doubling.gathering.one(item)) for item in (0, 2, 4)]
        await asyncio.sleep(0.5)
        late = [asyncio.create_task(doubling.gathering.one(item)) for item in (6, 8)]
        await asyncio.sleep(0.1)
        calls[0].cancel()
        late[0].cancel()
        assert await asyncio.gather(*calls[1:], late[1]) == [4, 8, 16]
        assert doubling.done == [[0, 2, 4], [8]]

    run(scene())
