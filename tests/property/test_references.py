"""Reference counts are exact under every sequence of calls, compared with a naive second implementation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelmesh.clock import LoopClock
from modelmesh.errors import ModelMeshError
from modelmesh.journal import Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.draft import Draft
from modelmesh.mesh.registrar import Registrar
from modelmesh.mesh.vmodel_rules import Setting, delete_in, fail_in, set_in, switch_in
from modelmesh.mesh.vmodels import VModels
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import REGISTRY, VMODELS, ModelRecord, VModelRecord
from modelmesh.store.memory import MemoryStore
from modelmesh.testing.loop import run

MODELS = "abcd"
NAMES = "vw"


class Naive:
    """Models that exist, and what each vmodel points at. References are counted by looking at all vmodels."""

    def __init__(self) -> None:
        self.models: dict[str, bool] = {}
        """Model -> whether it is deleted with its last reference."""
        self.names: dict[str, tuple[str, str]] = {}

    def references(self, model: str) -> int:
        return sum(model in pair for pair in self.names.values())

    def register(self, model: str) -> bool:
        self.models.setdefault(model, False)
        return True

    def unregister(self, model: str) -> bool:
        if self.references(model):
            return False
        self.models.pop(model, None)
        return True

    def set(self, name: str, target: str, give: bool, auto: bool, force: bool, loaded: Iterable[str]) -> bool:
        if not give and target not in self.models:
            return False
        if give and target not in self.models:
            self.models[target] = auto
        if name not in self.names:
            self.names[name] = (target, target)
            return True
        active, old_target = self.names[name]
        if old_target == target and not (force and active != target):
            return True
        at_once = force or target == active or active not in loaded or target in loaded
        self._point(name, (target if at_once else active, target))
        return True

    def switch(self, name: str) -> None:
        if name in self.names:
            target = self.names[name][1]
            self._point(name, (target, target))

    def delete(self, name: str) -> None:
        self._point(name, None)

    def _point(self, name: str, pair: tuple[str, str] | None) -> None:
        before = self.names.pop(name, ())
        if pair is not None:
            self.names[name] = pair
        for model in before:
            if self.models.get(model) and not self.references(model):
                self.models.pop(model, None)


steps = st.one_of(
    st.tuples(st.just("register"), st.sampled_from(MODELS)),
    st.tuples(st.just("unregister"), st.sampled_from(MODELS)),
    st.tuples(
        st.just("set"),
        st.sampled_from(NAMES),
        st.sampled_from(MODELS),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.frozensets(st.sampled_from(MODELS)),
    ),
    st.tuples(st.just("switch"), st.sampled_from(NAMES)),
    st.tuples(st.just("fail"), st.sampled_from(NAMES)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
)


async def contents(store: MemoryStore) -> tuple[dict[str, ModelRecord], dict[str, VModelRecord]]:
    models = {entry.key[len(REGISTRY) :]: entry.value for entry in (await store.snapshot(REGISTRY)).entries}
    names = {entry.key[len(VMODELS) :]: entry.value for entry in (await store.snapshot(VMODELS)).entries}
    return (
        {id: ModelRecord.decode(raw) for id, raw in models.items()},
        {id: VModelRecord.decode(raw) for id, raw in names.items()},
    )


async def done(call: Iterable[object] | object) -> bool:
    try:
        await call  # type: ignore[misc]
    except ModelMeshError:
        return False
    return True


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=25))
def test_one_writer_against_the_naive_model(sequence: list[tuple[object, ...]]) -> None:
    async def main() -> None:
        store, clock, naive = MemoryStore(), LoopClock(0), Naive()
        registrar = Registrar(store, Mirror(), clock, Journal(clock))
        await registrar.start()
        for what, *arguments in sequence:
            if what == "register":
                (model,) = arguments
                assert await done(registrar.register(Registration(str(model), "x"))) == naive.register(
                    str(model)
                )
            elif what == "unregister":
                (model,) = arguments
                assert await done(registrar.unregister(str(model))) == naive.unregister(str(model))
            elif what == "set":
                name, target, give, auto, force, loaded = arguments
                setting = Setting(name, target, Registration("", "x") if give else None, auto, force=force)  # type: ignore[arg-type]
                rule = partial(set_in, setting=setting, has_copies=loaded.__contains__, now_ms=1)  # type: ignore[attr-defined]
                assert await done(registrar.transact(rule)) == naive.set(
                    name, target, give, auto, force, loaded
                )  # type: ignore[arg-type]
            else:
                (name,) = arguments
                record = registrar.mirror.vmodel(str(name))
                target = record.target if record else "a"
                if what == "switch":
                    await registrar.transact(partial(switch_in, vmodel=str(name), target=target))
                    naive.switch(str(name))
                elif what == "fail":
                    await registrar.transact(partial(fail_in, vmodel=str(name), target=target))
                else:
                    await registrar.transact(partial(delete_in, vmodel=str(name), owner=""))
                    naive.delete(str(name))
            models, names = await contents(store)
            assert {id: (record.active, record.target) for id, record in names.items()} == naive.names
            assert {id: record.auto_delete for id, record in models.items()} == naive.models
            assert {id: record.references for id, record in models.items()} == {
                id: naive.references(id) for id in naive.models
            }
        await registrar.stop()

    run(main())


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

    def hold(self, model: str, why: str) -> None:
        pass

    def release(self, model: str, why: str) -> None:
        if self.rng.random() < 0.5:
            self.loaded.discard(model)

    def has_copies(self, model: str) -> bool:
        return model in self.loaded

    def failure(self, model: str) -> str:
        return ""


@pytest.mark.parametrize("first_seed", range(0, 200, 50))
def test_two_instances_at_once(first_seed: int) -> None:
    """Two instances write to one store, each with a mirror of its own; counts are right at every revision."""
    for seed in range(first_seed, first_seed + 50):
        run(race(seed))


async def race(seed: int) -> None:
    rng = random.Random(seed)
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
            )
            chance = rng.random()
            if chance < 0.6:
                await done(vmodels.set(setting, sync=rng.random() < 0.1))
            elif chance < 0.75:
                await done(vmodels.delete(name))
            elif chance < 0.9:
                await done(registrar.unregister(model))
            else:
                await done(registrar.register(Registration(model, "x")))
            await asyncio.sleep(rng.random() * 2)

    async def check() -> None:
        async for _ in store.watch("", await store.revision()):
            models, names = await contents(store)
            for id, record in models.items():
                expected = sum(id in (name.active, name.target) for name in names.values())
                assert record.references == expected, f"seed {seed}: {id}"
            for name in names.values():
                assert name.active in models, f"seed {seed}"
                assert name.target in models, f"seed {seed}"

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


def test_the_draft_counts_a_model_once_for_a_vmodel_that_has_it_twice() -> None:
    mirror = Mirror()
    draft = Draft(mirror, "", {})
    draft.put_model("a", ModelRecord("x"))
    set_in(draft, Setting("v", "a"), lambda model: False, 0)
    record = draft.model("a")
    assert record is not None
    assert record.references == 1
