"""Reference counts are exact when two instances write at once. One writer: see test_vmodel_sequences."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress

import pytest

from modelmesh.clock import LoopClock
from modelmesh.errors import ModelMeshError
from modelmesh.journal import Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming.draft import Draft
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.naming.vmodel_rules import Setting, set_in
from modelmesh.mesh.naming.vmodels import VModels
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import REGISTRY, VMODELS, Canary, ModelRecord, VModelRecord
from modelmesh.store.memory import MemoryStore
from modelmesh.testing.loop import run

MODELS = "abcd"
NAMES = "vw"


async def contents(store: MemoryStore) -> tuple[dict[str, ModelRecord], dict[str, VModelRecord]]:
    models = {entry.key[len(REGISTRY) :]: entry.value for entry in (await store.snapshot(REGISTRY)).entries}
    names = {entry.key[len(VMODELS) :]: entry.value for entry in (await store.snapshot(VMODELS)).entries}
    return (
        {id: ModelRecord.decode(raw) for id, raw in models.items()},
        {id: VModelRecord.decode(raw) for id, raw in names.items()},
    )


async def tried(call: Awaitable[object]) -> None:
    """Do it; to be refused is as good."""
    with suppress(ModelMeshError):
        await call


class Loader:
    """Loads at random speed, fails at random."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.loaded: set[str] = set()

    async def ensure_loaded(self, model: str, *, why: str) -> None:
        await asyncio.sleep(self.rng.random() * 3)
        if self.rng.random() < 0.3:
            raise ModelMeshError("bad luck", retry_after_s=1)
        self.loaded.add(model)

    async def bring(self, model: str, copies: int, *, beside: str, why: str) -> None:
        await self.ensure_loaded(model, why=why)

    def copies(self, model: str) -> int:
        if self.rng.random() < 0.05:
            self.loaded.discard(model)  # it is evicted
        return int(model in self.loaded)

    def failure(self, model: str) -> str:
        return ""


@pytest.mark.parametrize("first_seed", range(0, 200, 50))
def test_two_instances_at_once(first_seed: int) -> None:
    """Two instances write to one store, each with a mirror of its own; counts are right at every revision."""
    seen = Counter[str]()
    for seed in range(first_seed, first_seed + 50):
        seen += run(race(seed))
    assert seen["trials"] and seen["given up"], "a race in which nothing happens proves nothing"


async def race(seed: int) -> Counter[str]:
    rng, seen = random.Random(seed), Counter[str]()
    store, clock = MemoryStore(), LoopClock(1e9)
    houses = []
    for _ in range(2):
        registrar = Registrar(store, Mirror(), clock, Journal(clock))
        await registrar.start()
        vmodels = VModels(registrar, Loader(rng), clock, Journal(clock))
        vmodels.start()
        houses.append((registrar, vmodels))

    async def act() -> None:
        for _ in range(15):
            registrar, vmodels = rng.choice(houses)
            model, name = rng.choice(MODELS), rng.choice(NAMES)
            setting = Setting(
                name,
                model,
                model=Registration("", "x") if rng.random() < 0.7 else None,
                auto_delete_target=rng.random() < 0.5,
                force=rng.random() < 0.2,
                canary=Canary(0.5, rng.choice((500, 3000)), 0) if rng.random() < 0.4 else None,
            )
            chance = rng.random()
            if chance < 0.6:
                await tried(vmodels.set(setting, sync=rng.random() < 0.1))
            elif chance < 0.75:
                await tried(vmodels.delete(name))
            elif chance < 0.9:
                await tried(registrar.unregister(model))
            else:
                await tried(registrar.register(Registration(model, "x")))
            await asyncio.sleep(rng.random() * 2)
            vmodels.canaries.tick()

    async def check() -> None:
        async for _ in store.watch("", await store.revision()):
            models, names = await contents(store)
            for id, record in models.items():
                expected = sum(id in (name.active, name.target) for name in names.values())
                assert record.references == expected, f"seed {seed}: {id}"
            for name in names.values():
                assert name.active in models, f"seed {seed}"
                assert name.target in models, f"seed {seed}"
                seen["trials"] += name.on_trial
                seen["given up"] += name.rolled_back

    checking = asyncio.create_task(check())
    await asyncio.gather(*(act() for _ in range(3)))
    for registrar, vmodels in houses:
        await vmodels.stop()
        await registrar.wait_current()
    mirrors = [registrar.mirror for registrar, _ in houses]
    assert mirrors[0].page() == mirrors[1].page(), f"seed {seed}"
    assert mirrors[0].page_vmodels() == mirrors[1].page_vmodels(), f"seed {seed}"
    for registrar, _ in houses:
        await registrar.stop()
    await store.close()
    await checking
    return seen


def test_the_draft_counts_a_model_once_for_a_vmodel_that_has_it_twice() -> None:
    mirror = Mirror()
    draft = Draft(mirror, "", {})
    draft.put_model("a", ModelRecord("x"))
    set_in(draft, Setting("v", "a"), lambda model: False, 0)
    record = draft.model("a")
    assert record is not None
    assert record.references == 1
