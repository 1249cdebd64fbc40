"""The storage of all models is gone for a while and comes back: what is loaded serves on, the storage is not beset meanwhile, and
each model serves again within moments, loaded once.

`MODELMESH_OUTAGE_SEEDS=500` plays more.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from modelmesh.errors import Code, LoadFailed
from modelmesh.mesh.peering.provider import PLACES
from modelmesh.policy.backoff import LOOKS_PER_S
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage
from modelmesh.testing.theatre import Theatre

SEEDS = int(os.environ.get("MODELMESH_OUTAGE_SEEDS", "4"))
EVERY_S = 0.04
BACK_S = 2.0
"""After so long all models serve again. A second until the next look, and a quarter; what is refused is known for a second."""
GONE = LoadFailed("There is nothing at /models.", code=Code.NOT_FOUND)
AWAY = LoadFailed("The storage does not answer.", code=Code.UNAVAILABLE)


class Outage:
    """One story. `lasts_s`: how long the storage is gone."""

    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(seed)
        self._seed = seed
        self._n = rng.choice((1, 2, 3, 5))
        self._n_slots = rng.choice((1, 2, 4))
        self._at_load = rng.random() < 0.4
        """Whether the runtime finds out by trying, and not by looking at files."""
        self._gone_s = rng.choice((0.0, 0.3)) if self._at_load else 0.0
        """What finding out takes."""
        self._load_s = rng.choice((0.01, 0.05))
        self.lasts_s = rng.choice((5.0, 20.0))
        self._theatre: Theatre

    async def play(self) -> None:
        async with Theatre(
            self._n, seed=self._seed, max_loads=self._n_slots, load_timeout_s=2.0
        ) as self._theatre:
            hot = [f"hot{index}" for index in range(4)]
            cold = [f"cold{index}" for index in range(self._rng.choice((1, 10, 60)))]
            for model in (*hot, *cold):
                await self._theatre.register(model, Artefact(size_bytes=100, load_s=self._load_s))
            await self._ask(hot, 3.0, {Code.OK})

            self._lose()
            asking = asyncio.create_task(self._ask(hot, self.lasts_s, {Code.OK}, 0.5))
            refused = {Code.NOT_FOUND, Code.UNAVAILABLE}
            if self._gone_s:
                refused.add(
                    Code.DEADLINE_EXCEEDED
                )  # each is tried once in some places, which takes all slots for a while
            before = self._tries()
            await self._ask(cold, self.lasts_s, refused)
            again = self._tries() - before - len(cold) * min(self._n, PLACES)
            most = self._n * LOOKS_PER_S * self.lasts_s
            assert again <= most, f"seed {self._seed}: looked for again {again} times in {self.lasts_s} s"
            await asking

            self._find()
            begun = self._loads()
            await self._ask(cold, BACK_S, {Code.OK, *refused})
            asking = asyncio.create_task(self._ask(hot, 4.0, {Code.OK}, 0.5))
            await self._ask(cold, 4.0, {Code.OK})
            await asking
            assert self._loads() - begun <= len(cold) + self._n, f"seed {self._seed}: loaded more than once"
            self._theatre.check()

    def _lose(self) -> None:
        for artefact in self._theatre.artefacts.values():
            artefact.load_s = self._gone_s
            if self._at_load:
                artefact.error = AWAY
            else:
                artefact.estimate_error = GONE

    def _find(self) -> None:
        for artefact in self._theatre.artefacts.values():
            artefact.load_s, artefact.error, artefact.estimate_error = self._load_s, None, None

    def _tries(self) -> int:
        return sum(len(stage.runtime.looks) for stage in self._theatre)

    def _loads(self) -> int:
        return sum(len(stage.runtime.loads) for stage in self._theatre)

    def _any(self) -> Stage:
        return self._rng.choice(list(self._theatre))

    async def _ask(
        self, models: list[str], for_s: float, may_be: set[Code], every_s: float = EVERY_S
    ) -> None:
        """Ask for one or another all the time."""
        loop = asyncio.get_running_loop()
        ends_s, answers = loop.time() + for_s, []
        while loop.time() < ends_s:
            answers.append((loop.time(), self._any().ask(model := self._rng.choice(models)).answer, model))
            await asyncio.sleep(every_s)
        for at_s, pending, model in answers:
            answer = await pending
            left_s = ends_s - at_s
            assert answer.code in may_be, (
                f"seed {self._seed}: {model}, {left_s:.1f} s before the end: {answer}"
            )


@pytest.mark.parametrize("chunk", range(4))
def test_models_serve_again_when_their_storage_is_back(chunk: int) -> None:
    for seed in range(chunk, SEEDS, 4):
        run(Outage(seed).play())
