"""Free memory is filled with what was used lately, and with nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from modelmesh.errors import Code
from modelmesh.journal import Did
from modelmesh.mesh.control import Registration
from modelmesh.mesh.views import State
from modelmesh.store.memory import MemoryStore
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import WALL_START_S, Stage
from modelmesh.testing.theatre import Theatre

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


async def register(stage: Stage, ages_s: Mapping[str, float], size_bytes: int = 1_000) -> None:
    """Models last used so long before the start."""
    for model, age_s in ages_s.items():
        stage.artefacts[model] = Artefact(size_bytes=size_bytes, load_s=0.1)
        last_used_ms = round((WALL_START_S - age_s) * 1000)
        await stage.mesh.register(Registration(model, "fake", model, last_used_ms=last_used_ms))


def loaded(stage: Stage) -> list[str]:
    """In the order of loading."""
    return [entry.model for entry in stage.told(Did.LOADED)]


def test_those_used_last_come_back_first_after_a_restart() -> None:
    async def scene() -> None:
        store, artefacts = MemoryStore(), dict[str, Artefact]()
        async with Stage(store=store, artefacts=artefacts) as stage:
            for index in range(6):
                await stage.register(f"m{index}", Artefact(size_bytes=1_000, load_s=0.1))
            for model in ("m4", "m1", "m3"):
                assert (await stage.ask(model).answer).code is Code.OK
                await asyncio.sleep(10.0)
        async with Stage(store=store, artefacts=artefacts, fill=True) as stage:
            await asyncio.sleep(5.0)
            assert loaded(stage) == ["m3", "m1", "m4"]
            assert (await stage.ask("m3").answer).code is Code.OK
            assert stage.runtime.loads.count("m3") == 1
            stage.mesh.check()

    run(scene())


def test_what_was_not_used_for_long_or_never_stays_where_it_is() -> None:
    async def scene() -> None:
        async with Stage(fill=True) as stage:
            await register(stage, {"new": HOUR_S, "old": 6 * DAY_S, "older": 8 * DAY_S})
            await stage.register("never")
            await asyncio.sleep(200.0)
            assert loaded(stage) == ["new", "old"]

    run(scene())


def test_nothing_is_evicted_and_some_memory_stays_free() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=10_000, fill=True) as stage:
            await register(stage, {f"m{index}": HOUR_S * (1 + index) for index in range(20)})
            await asyncio.sleep(400.0)
            assert loaded(stage) == [f"m{index}" for index in range(9)]
            assert not stage.told(Did.EVICTED)
            stage.mesh.check()

    run(scene())


def test_it_waits_while_somebody_waits_for_loads() -> None:
    async def scene() -> None:
        async with Stage(max_loads=1, fill=True) as stage:
            await register(stage, {"guess": HOUR_S})
            for index in range(30):
                await stage.register(f"m{index}", Artefact(size_bytes=100, load_s=1.0))
            requests = [stage.ask(f"m{index}", 60.0) for index in range(30)]
            assert {(await request.answer).code for request in requests} == {Code.OK}
            assert "guess" not in loaded(stage)[:30]
            await asyncio.sleep(120.0)
            assert "guess" in loaded(stage)

    run(scene())


def test_it_uses_half_of_the_time_at_most() -> None:
    async def scene() -> None:
        async with Stage(max_loads=4, fill=True) as stage:
            await register(stage, {f"m{index}": HOUR_S for index in range(100)}, size_bytes=10)
            await asyncio.sleep(2.0 + 4.0)
            assert 15 <= len(loaded(stage)) <= 20
            await asyncio.sleep(30.0)
            assert len(loaded(stage)) == 100

    run(scene())


def test_what_somebody_had_unloaded_is_not_brought_back() -> None:
    async def scene() -> None:
        async with Theatre(3, fill=True) as theatre:
            await theatre.register("iris")
            assert (await theatre["a"].ask("iris").answer).code is Code.OK
            await theatre["b"].mesh.unload("iris")
            await asyncio.sleep(500.0)
            assert theatre.loads("iris") == 1
            assert (await theatre["a"].ask("iris").answer).code is Code.OK

    run(scene())


def test_a_model_that_cannot_be_loaded_does_not_stop_it() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=10_000, fill=True) as stage:
            await register(stage, {"large": HOUR_S}, size_bytes=20_000)
            await register(stage, {"missing": HOUR_S, "good": DAY_S})
            stage.artefacts.pop("missing")
            await asyncio.sleep(20.0)
            assert loaded(stage) == ["good"]
            assert stage.runtime.loads.count("large") == 0

    run(scene())


def test_keepers_share_the_work_and_load_each_model_once() -> None:
    async def scene() -> None:
        async with Theatre(4, budget_bytes=50_000, fill=True) as theatre:
            first = next(iter(theatre))
            await register(first, {f"m{index}": HOUR_S * (1 + index) for index in range(60)})
            await asyncio.sleep(150.0)
            assert [theatre.loads(f"m{index}") for index in range(60)] == [1] * 60
            shares = [stage.mesh.instance().models_loaded for stage in theatre]
            assert min(shares) >= 5, shares
            theatre.check()

    run(scene())


def test_an_instance_that_joins_is_filled_with_what_found_no_room() -> None:
    async def scene() -> None:
        async with Theatre(2, budget_bytes=10_000, fill=True) as theatre:
            first = next(iter(theatre))
            await register(first, {f"m{index}": HOUR_S * (1 + index) for index in range(30)})
            await asyncio.sleep(200.0)
            before = sum(stage.mesh.instance().models_loaded for stage in theatre)
            assert 16 <= before <= 18
            joined = await theatre.begin("c")
            await asyncio.sleep(200.0)
            assert joined.mesh.instance().models_loaded >= 5
            held = [model for model in (f"m{index}" for index in range(30)) if theatre.holders(model)]
            assert all(len(theatre.holders(model)) == 1 for model in held)
            theatre.check()

    run(scene())


@pytest.mark.parametrize("draining", [True, False])
def test_an_instance_that_leaves_is_not_filled(draining: bool) -> None:
    async def scene() -> None:
        async with Stage(fill=True) as stage:
            await register(stage, {"iris": HOUR_S})
            stage.mesh._draining = draining
            await asyncio.sleep(20.0)
            copy = stage.mesh.copy("iris")
            assert (copy is not None and copy.state is State.LOADED) is not draining
            stage.mesh._draining = False

    run(scene())
