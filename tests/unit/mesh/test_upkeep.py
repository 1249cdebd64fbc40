"""How models are kept: pins, copies that are always there, priorities; alone and among others."""

from __future__ import annotations

import asyncio

import pytest

from modelmesh.errors import Code, FailedPrecondition, LoadFailed
from modelmesh.journal import Did
from modelmesh.mesh.views import State
from modelmesh.registry.keep import KeepChange
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage
from modelmesh.testing.theatre import Theatre

ZONES = {
    "a": {"zone": "z1", "host": "h1"},
    "b": {"zone": "z1", "host": "h2"},
    "c": {"zone": "z2", "host": "h3"},
    "d": {"zone": "z2", "host": "h3"},
}


def loaded(stage: Stage, model: str) -> bool:
    copy = stage.mesh.copy(model)
    return copy is not None and copy.state is State.LOADED and copy.retirement is None


# --- one instance ---------------------------------------------------------------------------------------------


def test_a_pinned_model_survives_pressure_until_it_is_unpinned() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=3_000) as stage:
            await stage.register("pinned", pin=True)
            for index in range(5):
                await stage.register(f"m{index}")
            await stage.ask("pinned").answer
            assert stage.mesh.model("pinned").pinned_by == "pinned"
            await sweep(stage)
            assert stage.runtime.loads.count("pinned") == 1
            await stage.mesh.keep("pinned", KeepChange(pin=False))
            assert stage.mesh.model("pinned").pinned_by == ""
            await sweep(stage)
            assert not loaded(stage, "pinned")
            stage.mesh.check()

    async def sweep(stage: Stage) -> None:
        for _ in range(4):
            for index in range(5):
                assert (await stage.ask(f"m{index}").answer).code is Code.OK
                await asyncio.sleep(0.1)

    run(scene())


def test_a_model_is_pinned_where_it_stands_even_on_its_way_out() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=2_000) as stage:
            for model in ("a", "b", "c"):
                await stage.register(model)
            busy = stage.ask("a", execution_s=1.0)
            await asyncio.sleep(0.5)
            await stage.ask("b", execution_s=2.0).answer
            stage.ask("a", execution_s=1.0)
            stage.ask("b", execution_s=1.0)
            await busy.answer
            waiting = stage.ask("c", timeout_s=5.0)
            await asyncio.sleep(0.05)
            (leaving,) = [model for model in "ab" if not loaded(stage, model)]
            await stage.mesh.keep(leaving, KeepChange(pin=True))
            assert loaded(stage, leaving)
            assert stage.told(Did.REVIVED, leaving)
            assert (await waiting.answer).code is Code.OK
            assert loaded(stage, leaving)
            stage.mesh.check()

    run(scene())


def test_pins_that_leave_no_room_are_named_to_those_they_keep_out() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=3_000) as stage:
            for model in ("a", "b", "c"):
                await stage.register(model, pin=True)
                await stage.ask(model).answer
            await asyncio.sleep(0.5)
            (warned,) = stage.told(Did.WARNED)
            assert warned.reason.startswith(
                "Models that are pinned, or of which copies are kept, hold 2.93 KiB"
            )
            await stage.register("d")
            answer = await stage.ask("d").answer
            assert answer.code is Code.RESOURCE_EXHAUSTED
            assert "are held by models that may not be evicted" in answer.message
            assert "Unpin some, keep fewer copies, or raise the memory." in answer.message
            await stage.mesh.keep("a", KeepChange(pin=False))
            assert (await stage.ask("d").answer).code is Code.OK
            stage.mesh.check()

    run(scene())


def test_a_pinned_model_is_unloaded_when_somebody_asks_and_loaded_again_when_its_server_died() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("a", pin=True)
            await stage.ask("a").answer
            stage.runtime.crash_target(stage.runtime.loaded["a"][1][0].target_id)
            await stage.until(lambda: stage.runtime.loads.count("a") == 2 and loaded(stage, "a"))
            await stage.mesh.unload("a")
            await asyncio.sleep(200.0)
            assert stage.mesh.copy("a") is None
            assert stage.runtime.loads.count("a") == 2
            stage.mesh.check()

    run(scene())


def test_one_instance_keeps_one_copy_whatever_happens_to_it() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=3_000) as stage:
            await stage.register("kept", min_copies=2)
            await stage.until(lambda: loaded(stage, "kept"), 2.0)
            for index in range(5):
                await stage.register(f"m{index}")
                await stage.ask(f"m{index}").answer
                await asyncio.sleep(0.5)
            assert stage.runtime.loads.count("kept") == 1
            assert stage.mesh.model("kept").pinned_by == "min copies"
            stage.runtime.crash_target(stage.runtime.loaded["kept"][1][0].target_id)
            await stage.until(lambda: stage.runtime.loads.count("kept") == 2 and loaded(stage, "kept"), 2.0)
            await stage.mesh.unload("kept")
            await stage.until(lambda: stage.runtime.loads.count("kept") == 3 and loaded(stage, "kept"), 2.0)
            await stage.mesh.keep("kept", KeepChange(min_copies=0))
            assert stage.mesh.model("kept").pinned_by == ""
            await stage.mesh.unregister("kept")
            await asyncio.sleep(100.0)
            assert stage.mesh.copy("kept") is None
            stage.mesh.check()

    run(scene())


def test_what_is_to_be_kept_is_loaded_after_a_restart() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("kept", min_copies=1)
            await stage.until(lambda: loaded(stage, "kept"), 2.0)
            again = Stage(store=stage.store, artefacts=stage.artefacts)
            async with again:
                await again.until(lambda: loaded(again, "kept"), 2.0)

    run(scene())


@pytest.mark.parametrize("permanent", [True, False])
def test_a_model_that_cannot_be_kept_is_tried_less_and_less_often(permanent: bool) -> None:
    async def scene() -> None:
        async with Stage() as stage:
            code = Code.INVALID_ARGUMENT if permanent else Code.UNAVAILABLE
            artefact = Artefact(error=LoadFailed("No luck.", code=code))
            await stage.register("kept", artefact, min_copies=1)
            await asyncio.sleep(2_000.0)
            tries = len(stage.runtime.loads)
            assert 4 <= tries <= (7 if permanent else 30)
            assert stage.told(Did.WARNED, "kept")[0].reason == "Fewer than 1 copies are loaded: No luck."
            artefact.error = None
            await stage.until(lambda: loaded(stage, "kept"), 600.0)
            stage.mesh.check()

    run(scene())


def test_priority_decides_who_goes_and_who_comes_first() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=2_000, max_loads=1) as stage:
            for model, priority in (("low", 1.0), ("high", 10.0), ("next", 1.0)):
                await stage.register(model, Artefact(load_s=0.1), priority=priority)
            for model in ("high", "low", "high", "low"):
                await stage.ask(model).answer
                await asyncio.sleep(1.0)
            await asyncio.sleep(1.0)
            await stage.ask("next").answer
            assert loaded(stage, "high") and not loaded(stage, "low")
        async with Stage(max_loads=1) as stage:
            for model, priority in (("first", 1.0), ("low", 1.0), ("high", 8.0)):
                await stage.register(model, Artefact(load_s=0.2), priority=priority)
            asked = [stage.ask(model) for model in ("first", "low", "low", "high")]
            await asyncio.gather(*(request.answer for request in asked))
            assert stage.runtime.loads == ["first", "high", "low"]
            await stage.mesh.keep("low", KeepChange(priority=2.0))
            copy = stage.mesh.copy("low")
            assert copy is not None and copy.priority == 2.0

    run(scene())


# --- several instances ------------------------------------------------------------------------------------------


def test_copies_that_are_kept_are_in_different_zones_and_restored_when_one_dies() -> None:
    async def scene() -> None:
        async with Theatre(4, members=ZONES) as theatre:
            models = [f"m{index}" for index in range(12)]
            for model in models:
                await theatre.register(model, min_copies=2)
            await theatre.until(lambda: all(len(theatre.holders(model)) == 2 for model in models), 5.0)
            assert all(zones(theatre.holders(model)) == {"z1", "z2"} for model in models)
            assert sum(theatre.loads(model) for model in models) == 24
            await theatre.crash("c")
            await theatre.until(lambda: all(len(theatre.holders(model)) == 2 for model in models), 5.0)
            assert all(zones(theatre.holders(model)) == {"z1", "z2"} for model in models)
            await theatre.crash("d")
            await theatre.until(lambda: all(len(theatre.holders(model)) == 2 for model in models), 5.0)
            await theatre.begin("c")
            await asyncio.sleep(60.0)
            assert sum(theatre.loads(model) for model in models) <= 26, (
                "nothing is moved for a zone that is back"
            )
            theatre.check()

    def zones(ids: list[str]) -> set[str]:
        return {ZONES[id]["zone"] for id in ids}

    run(scene())


def test_three_copies_in_two_zones_are_on_different_hosts() -> None:
    async def scene() -> None:
        async with Theatre(4, members=ZONES) as theatre:
            for index in range(8):
                await theatre.register(f"m{index}", min_copies=3)
            await asyncio.sleep(5.0)
            for index in range(8):
                assert len({ZONES[id]["host"] for id in theatre.holders(f"m{index}")}) == 3
            theatre.check()

    run(scene())


def test_fewer_instances_hold_fewer_copies_and_one_that_comes_the_missing_one() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await theatre.register("m", min_copies=3)
            await theatre.until(lambda: len(theatre.holders("m")) == 2, 5.0)
            await asyncio.sleep(100.0)
            assert theatre.loads("m") == 2
            await theatre.begin("c")
            await theatre.until(lambda: len(theatre.holders("m")) == 3, 5.0)
            await theatre["a"].mesh.keep("m", KeepChange(min_copies=1))
            await asyncio.sleep(1.0)
            held = [id for id in theatre.holders("m") if theatre[id].mesh.model("m").pinned_by]
            assert len(held) == 1, "those beyond may be evicted"
            theatre.check()

    run(scene())


def test_an_instance_that_leaves_is_replaced_before_it_goes() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("m", Artefact(load_s=0.2), min_copies=2)
            await theatre.until(lambda: len(theatre.holders("m")) == 2, 5.0)
            leaving = theatre.holders("m")[0]
            seen: list[int] = []

            async def watch() -> None:
                while True:
                    await asyncio.sleep(0.05)
                    seen.append(len([id for id in theatre.holders("m") if id != leaving]))

            watching = asyncio.create_task(watch())
            stage = theatre[leaving]
            ask = asyncio.create_task(stage.mesh.drain(10.0))
            await theatre.until(lambda: 2 in seen, 5.0)
            await ask
            watching.cancel()
            await theatre.end(leaving)
            theatre.check()

    run(scene())


def test_kept_copies_are_not_evicted_in_any_instance() -> None:
    async def scene() -> None:
        async with Theatre(3, budget_bytes=3_000) as theatre:
            for index in range(2):
                await theatre.register(f"kept{index}", min_copies=2)
            for index in range(20):
                await theatre.register(f"m{index}")
            await asyncio.sleep(3.0)
            for _ in range(3):
                for index in range(20):
                    assert (await theatre["abc"[index % 3]].ask(f"m{index}").answer).code is Code.OK
            assert theatre.loads("kept0") == theatre.loads("kept1") == 2
            assert sum(stage.mesh.instance().evictions_total for stage in theatre) > 10
            theatre.check()

    run(scene())


def test_a_read_only_registry_keeps_what_it_says() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m", min_copies=1)
            stage.registrar.keep_off("Not now.")
            with pytest.raises(FailedPrecondition):
                await stage.mesh.keep("m", KeepChange(min_copies=2))
            await stage.until(lambda: loaded(stage, "m"), 5.0)

    run(scene())
