"""Whose turn it is among the models that a keeper sees to, how many at a time, and when a failed one is tried again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import pytest

from modelmesh.clock import LoopClock
from modelmesh.errors import NoCapacity
from modelmesh.mesh.keeping import keeping
from modelmesh.mesh.keeping.keeping import AT_ONCE, GRACE_S, Keeping
from modelmesh.testing.loop import run


class Chores:
    """A duty that is done when it was attended to once; `broken` ones fail each time."""

    def __init__(self, open: Sequence[str] = (), broken: Sequence[str] = (), takes_s: float = 0.1) -> None:
        self.open = dict.fromkeys([*open, *broken])
        self.broken = set(broken)
        self.takes_s = takes_s
        self.tries: list[tuple[str, float]] = []
        self.at_once = self.at_once_max = 0

    def candidates(self) -> Sequence[str]:
        return list(self.open)

    def needs(self, model: str) -> bool:
        return model in self.open

    async def attend(self, model: str) -> None:
        self.tries.append((model, asyncio.get_running_loop().time()))
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        await asyncio.sleep(self.takes_s)
        self.at_once -= 1
        if model in self.broken:
            raise NoCapacity(f"No place for {model}.", model=model, retry_after_s=0.1)
        self.open.pop(model, None)


def play(
    chores: Chores,
    story: Callable[[Keeping], Awaitable[None]],
    keeps: Callable[[str], bool] = lambda model: True,
) -> None:
    async def scene() -> None:
        kept = Keeping(LoopClock(0.0), random.Random(1), keeps)
        kept.add(chores)
        owner = asyncio.create_task(kept.run())
        await story(kept)
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)

    run(scene())


def test_what_needs_something_at_the_start_is_found_and_done_a_few_at_a_time() -> None:
    chores = Chores([f"m{index}" for index in range(250)])

    async def story(kept: Keeping) -> None:
        await asyncio.sleep(GRACE_S + 0.1 * 250 / AT_ONCE + 0.1)

    play(chores, story)
    assert not chores.open
    assert chores.at_once_max == AT_ONCE
    assert Counter(model for model, _ in chores.tries).most_common(1)[0][1] == 1


def test_what_is_noted_is_done_at_once_in_order_and_what_others_keep_is_left_to_them() -> None:
    chores = Chores(takes_s=0.0)

    async def story(kept: Keeping) -> None:
        await asyncio.sleep(2 * GRACE_S)
        for model in ("a", "b", "c", "a"):
            chores.open[model] = None
            kept.note(model)
        kept.note("nothing to do")
        await asyncio.sleep(0.01)

    play(chores, story, keeps=lambda model: model != "b")
    assert [model for model, _ in chores.tries] == ["a", "c"]
    assert list(chores.open) == ["b"]


def test_a_model_noted_while_it_is_attended_to_has_another_turn() -> None:
    chores = Chores()

    async def story(kept: Keeping) -> None:
        await asyncio.sleep(2 * GRACE_S)
        chores.open["a"] = None
        kept.note("a")
        await asyncio.sleep(0.15)
        assert not chores.open
        chores.open["a"] = None
        kept.note("a")
        await asyncio.sleep(0.05)
        kept.note("a")
        asyncio.get_running_loop().call_later(0.06, chores.open.__setitem__, "a", None)
        asyncio.get_running_loop().call_later(0.06, kept.note, "a")
        await asyncio.sleep(1.0)

    play(chores, story)
    assert len(chores.tries) == 3
    assert not chores.open


def test_a_failed_one_is_tried_later_and_later_however_often_it_is_noted() -> None:
    chores = Chores(broken=["a"])

    async def story(kept: Keeping) -> None:
        for _ in range(600):
            kept.note("a")
            await asyncio.sleep(0.1)

    play(chores, story)
    times_s = [at_s for _, at_s in chores.tries]
    pauses_s = [later - sooner for sooner, later in pairwise(times_s)]
    assert 4 <= len(times_s) <= 8
    assert all(later > sooner for sooner, later in pairwise(pauses_s[1:]))


def test_an_instance_that_comes_gives_a_failed_one_another_chance() -> None:
    chores = Chores(broken=["a"])

    async def story(kept: Keeping) -> None:
        await asyncio.sleep(50.0)
        chores.broken.clear()
        before = len(chores.tries)
        kept.members_changed()
        await asyncio.sleep(GRACE_S + 0.2)
        assert len(chores.tries) == before + 1

    play(chores, story)
    assert not chores.open


def test_what_the_queue_cannot_take_is_found_by_looking_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "QUEUE_MAX", 10)
    chores = Chores(takes_s=0.01)

    async def story(kept: Keeping) -> None:
        await asyncio.sleep(2 * GRACE_S)
        for index in range(35):
            chores.open[f"m{index}"] = None
            kept.note(f"m{index}")
        await asyncio.sleep(1.0)
        assert len(chores.open) >= 20
        await asyncio.sleep(4 * keeping.LOOK_AGAIN_S)

    play(chores, story)
    assert not chores.open


def test_a_bug_ends_it() -> None:
    class Broken(Chores):
        async def attend(self, model: str) -> None:
            raise ValueError(model)

    async def scene() -> None:
        kept = Keeping(LoopClock(0.0), random.Random(1), lambda model: True)
        kept.add(Broken(["a"]))
        with pytest.raises(ExceptionGroup) as raised:
            await kept.run()
        assert raised.group_contains(ValueError)

    run(scene())
