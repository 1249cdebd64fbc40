"""Loads that nobody waits for: on half of the slots, and only in the place of what is worth less."""

from __future__ import annotations

import asyncio

import pytest

from modelmesh.errors import Code, NoCapacity
from modelmesh.journal import Did
from modelmesh.mesh.views import State
from modelmesh.policy.urgency import Why
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage, raised


async def use(stage: Stage, model: str, times: int) -> None:
    for _ in range(times):
        assert (await stage.ask(model).answer).code is Code.OK
        await asyncio.sleep(0.5)


def want(stage: Stage, model: str, need: Why, *, suspicion: bool = False) -> asyncio.Task[None]:
    load = stage.mesh._asks.load(model, "a test", False, 60.0, need=need, suspicion=suspicion)
    return asyncio.create_task(load)


def loading(stage: Stage) -> list[str]:
    return [model for model, kind in stage.runtime.busy.items() if kind == "load"]


@pytest.mark.parametrize(
    ("need", "suspicion"), [(Why.SCALE, False), (Why.PREWARM, False), (Why.URGENT, True)]
)
def test_of_many_at_once_half_of_the_slots_are_used(need: Why, suspicion: bool) -> None:
    async def scene() -> None:
        async with Stage(max_loads=4) as stage:
            models = [f"m{index}" for index in range(6)]
            for model in [*models, "other", "late"]:
                await stage.register(model, Artefact(size_bytes=100, load_s=1.0))
            calls = [want(stage, model, need, suspicion=suspicion) for model in models]
            await asyncio.sleep(0.5)
            assert loading(stage) == models[:2]
            asked = stage.ask("other"), stage.ask("late")
            await asyncio.sleep(0.1)
            assert loading(stage) == [*models[:2], "other", "late"]
            assert {(await request.answer).code for request in asked} == {Code.OK}
            await asyncio.gather(*calls)

    run(scene())


def test_a_request_that_comes_makes_a_gentle_load_an_urgent_one() -> None:
    async def scene() -> None:
        async with Stage(max_loads=2) as stage:
            for model in ("one", "two", "three"):
                await stage.register(model, Artefact(size_bytes=100, load_s=1.0))
            calls = [want(stage, model, Why.SCALE) for model in ("one", "two", "three")]
            await asyncio.sleep(0.1)
            assert loading(stage) == ["one"]
            request = stage.ask("three")
            await asyncio.sleep(0.1)
            assert loading(stage) == ["one", "three"]
            assert (await request.answer).code is Code.OK
            await asyncio.gather(*calls)

    run(scene())


def test_what_is_expected_to_be_used_takes_the_place_of_what_is_worth_less() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=3_000) as stage:
            await stage.register("often", Artefact(size_bytes=1_000, load_s=0.1))
            await stage.register("seldom", Artefact(size_bytes=1_000, load_s=0.1))
            await stage.register("expected", Artefact(size_bytes=1_500, load_s=0.1))
            await use(stage, "expected", 20)
            await stage.mesh.unload("expected")
            await asyncio.sleep(2.0)
            await use(stage, "seldom", 1)
            await use(stage, "often", 20)
            await want(stage, "expected", Why.SCALE)
            assert [entry.model for entry in stage.told(Did.EVICTED)] == ["seldom"]
            stage.mesh.check()

    run(scene())


@pytest.mark.parametrize("need", [Why.SCALE, Why.PREWARM])
def test_what_is_worth_more_stays_and_the_call_is_told(need: Why) -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=2_000) as stage:
            await stage.register("often", Artefact(size_bytes=1_500, load_s=0.1))
            await stage.register("hardly", Artefact(size_bytes=1_000, load_s=0.1))
            await use(stage, "often", 20)
            error = await raised(want(stage, "hardly", need))
            assert isinstance(error, NoCapacity)
            assert not stage.told(Did.EVICTED)
            assert stage.mesh.copy("hardly") is None
            assert (copy := stage.mesh.copy("often")) is not None and copy.state is State.LOADED
            stage.mesh.check()

    run(scene())


def test_nothing_is_evicted_for_a_guess_even_if_it_is_worth_nothing() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=2_000) as stage:
            await stage.register("idle", Artefact(size_bytes=1_500))
            await stage.register("guess", Artefact(size_bytes=1_000))
            await stage.mesh.load("idle")
            await asyncio.sleep(100.0)
            assert isinstance(await raised(want(stage, "guess", Why.PREWARM)), NoCapacity)
            assert not stage.told(Did.EVICTED)

    run(scene())
