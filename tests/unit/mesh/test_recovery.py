"""What was in use and is loaded nowhere any more comes back before it is asked for; what nobody used does not."""

from __future__ import annotations

import asyncio

import pytest

from modelmesh.errors import Code, LoadFailed
from modelmesh.journal import Did
from modelmesh.testing.loop import run
from modelmesh.testing.membership import LEASE_S
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage
from modelmesh.testing.theatre import Theatre

AWAY = LoadFailed("The storage is away.", code=Code.UNAVAILABLE)


async def use(theatre: Theatre, model: str, times: int = 5) -> None:
    entry = next(iter(theatre))
    for _ in range(times):
        assert (await entry.ask(model).answer).code is Code.OK
        await asyncio.sleep(0.2)


async def load_at(theatre: Theatre, id: str, model: str, artefact: Artefact, **keep: int) -> None:
    await theatre.register(model, artefact, **keep)
    await theatre[id].mesh._asks.load(model, "a test", False, 10.0)


def test_what_only_a_dead_instance_held_is_loaded_again_if_it_was_in_use() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            for index in range(12):
                await load_at(theatre, "d", f"m{index}", Artefact(load_s=0.2))
            await theatre.settled()
            for model in ("m1", "m5", "m9"):
                await use(theatre, model)
            await theatre.settled()
            await theatre.crash("d")
            await asyncio.sleep(LEASE_S + 5.0)
            held = {f"m{index}" for index in range(12) if theatre.holders(f"m{index}")}
            assert held == {"m1", "m5", "m9"}
            assert all(len(theatre.holders(model)) == 1 for model in held)
            loads = sum(theatre.loads(model) for model in held)
            await use(theatre, "m5")
            assert sum(theatre.loads(model) for model in held) == loads
            theatre.check()

    run(scene())


def test_what_is_held_elsewhere_too_is_left_alone() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await load_at(theatre, "c", "iris", Artefact())
            await theatre["b"].mesh._asks.load("iris", "a test", False, 10.0)
            await theatre.settled()
            await use(theatre, "iris")
            await theatre.crash("c")
            await asyncio.sleep(LEASE_S + 5.0)
            assert theatre.holders("iris") == ["b"]

    run(scene())


def test_the_most_missed_come_first_on_half_of_the_slots() -> None:
    async def scene() -> None:
        async with Theatre(2, max_loads=4, budget_bytes=1_000_000) as theatre:
            models = [f"m{index}" for index in range(30)]
            for model in models:
                artefact = Artefact(load_s=5.0 if model in models[10:15] else 0.5)
                await load_at(theatre, "b", model, artefact, max_copies=1)
            await theatre.settled()
            for _ in range(4):
                for model in models:
                    assert (await theatre["a"].ask(model).answer).code is Code.OK
                await asyncio.sleep(2.0)
            await theatre.settled()
            await theatre.crash("b")
            alone = theatre["a"]
            busiest = 0
            for _ in range(3_000):
                await asyncio.sleep(0.01)
                busiest = max(busiest, sum(kind == "load" for kind in alone.runtime.busy.values()))
            assert busiest == 2
            await asyncio.sleep(20.0)
            order = [entry.model for entry in alone.told(Did.LOADED)]
            assert sorted(order) == sorted(models)
            assert set(order[:4]) < set(models[10:15]), order

    run(scene())


def test_nothing_worth_more_goes_for_it() -> None:
    async def scene() -> None:
        async with Theatre(2, budget_bytes=10_000) as theatre:
            for index in range(9):
                await load_at(theatre, "a", f"busy{index}", Artefact(size_bytes=1_000, load_s=0.1))
            await load_at(theatre, "b", "seldom", Artefact(size_bytes=3_000, load_s=0.1))
            await theatre.settled()
            await use(theatre, "seldom", 2)
            await asyncio.sleep(20.0)
            for _ in range(10):
                for index in range(9):
                    await use(theatre, f"busy{index}", 1)
            await theatre.crash("b")
            for _ in range(8):
                for index in range(9):
                    await use(theatre, f"busy{index}", 1)
            await asyncio.sleep(1.0)
            assert not theatre.holders("seldom")
            assert not theatre["a"].told(Did.EVICTED)
            theatre.check()

    run(scene())


def test_when_the_keeper_dies_too_the_next_one_sees_to_it() -> None:
    async def scene() -> None:
        async with Theatre(5, max_loads=1) as theatre:
            models = [f"m{index}" for index in range(20)]
            for model in models:
                await load_at(theatre, "e", model, Artefact(load_s=2.0), max_copies=1)
            await theatre.settled()
            for model in models:
                await use(theatre, model, 3)
            await theatre.settled()
            await theatre.crash("e")
            await asyncio.sleep(LEASE_S + 1.0)
            await theatre.crash("d")
            await asyncio.sleep(LEASE_S + 30.0)
            missing = [model for model in models if not theatre.holders(model)]
            assert not missing
            theatre.check()

    run(scene())


def test_an_instance_that_comes_back_in_another_life_has_lost_what_it_held() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await load_at(theatre, "c", "iris", Artefact())
            await theatre.settled()
            await use(theatre, "iris")
            await theatre.crash("c")
            await theatre.begin("c")
            await theatre.settled()
            assert len(theatre.holders("iris")) == 1

    run(scene())


@pytest.mark.parametrize("n", [1, 3])
def test_a_model_that_was_refused_is_loaded_when_its_storage_is_back(n: int) -> None:
    async def scene() -> None:
        async with Theatre(n) as theatre:
            artefact = await theatre.register("iris", Artefact(error=AWAY))
            assert (await theatre["a"].ask("iris").answer).code is Code.UNAVAILABLE
            await asyncio.sleep(60.0)
            tries = theatre.loads("iris")
            assert tries <= 7 * n, "its keeper has it tried ever more rarely"
            artefact.error = None
            await asyncio.sleep(130.0)
            assert len(theatre.holders("iris")) == 1
            theatre.check()

    run(scene())


def test_alone_without_others_by_setting_it_is_the_same() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            artefact = await stage.register("iris", Artefact(error=AWAY))
            assert (await stage.ask("iris").answer).code is Code.UNAVAILABLE
            artefact.error = None
            await asyncio.sleep(10.0)
            assert "iris" in stage.runtime.loaded

    run(scene())


@pytest.mark.parametrize("error", [AWAY, LoadFailed("It is broken.", code=Code.INVALID_ARGUMENT)])
def test_it_is_given_up_when_it_stays_broken(error: LoadFailed) -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("iris", Artefact(error=error))
            assert (await stage.ask("iris").answer).code is error.code
            await asyncio.sleep(1_000.0)
            tries = len(stage.runtime.loads)
            await asyncio.sleep(10_000.0)
            assert len(stage.runtime.loads) == tries
            assert tries == 1 if error is not AWAY else 5 < tries < 20

    run(scene())
