"""All instances are replaced under load, one after the other: no client notices, and each model moves about once.

`MODELMESH_UPGRADE_SEEDS=500` plays more.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter

import pytest

from modelmesh.errors import Code
from modelmesh.testing.loop import run
from modelmesh.testing.requests import Answer
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.theatre import Theatre

SEEDS = int(os.environ.get("MODELMESH_UPGRADE_SEEDS", "20"))
EVERY_S = 0.02
GRACE_S = 10.0


async def replaced(seed: int) -> tuple[Counter[Code], float]:
    """What clients were answered, and loads per model."""
    rng = random.Random(seed)
    n = rng.randint(2, 6)
    answers: list[asyncio.Future[Answer]] = []
    async with Theatre(n, seed=seed, budget_bytes=8_000, max_loads=rng.choice((1, 2))) as theatre:
        theatre.network.delay_s = rng.choice(((0.0002, 0.002), (0.005, 0.05)))
        models = [f"m{index}" for index in range(4 * n)]
        for model in models:
            await theatre.register(model, Artefact(size_bytes=1_000, load_s=rng.choice((0.01, 0.1, 0.4))))
        over = asyncio.Event()

        async def ask() -> None:
            while not over.is_set():
                ready = [stage for stage in theatre if stage.mesh.instance().ready]
                execution_s = rng.choice((0.001, 0.05))
                answers.append(rng.choice(ready).ask(rng.choice(models), 20.0, execution_s).answer)
                await asyncio.sleep(EVERY_S)

        asking = asyncio.create_task(ask())
        await asyncio.sleep(5.0)
        before = Counter(model for stage in theatre for model in stage.runtime.loads)
        moved: Counter[str] = Counter()
        for id in list(theatre.ids):
            new = await theatre.begin(f"{id}1", revision="next")
            await theatre.settled()
            old = theatre.stages[id]
            await old.stop(GRACE_S)
            del theatre.stages[id]
            moved.update(model for model in old.runtime.loads if model in models)
            assert new.mesh.instance().ready
        over.set()
        await asking
        given = [await answer for answer in answers]
        moved.update(model for stage in theatre for model in stage.runtime.loads)
        theatre.check()
    return Counter(answer.code for answer in given), (moved.total() - before.total()) / len(models)


@pytest.mark.timeout(600)
def test_a_rolling_replacement_changes_nothing_for_clients() -> None:
    loads = []
    for seed in range(SEEDS):
        answers, per_model = run(replaced(seed))
        assert answers.keys() == {Code.OK}, f"seed {seed}: {answers}"
        loads.append(per_model)
    assert sum(loads) / len(loads) < 2.0
