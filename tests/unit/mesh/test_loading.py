"""Faults become loads: single flight, order, memory before slots, admission by deadline, failures."""

from __future__ import annotations

import asyncio
import re

import pytest

from modelmesh.dataplane.protocol import NameKind
from modelmesh.errors import Code, LoadFailed, LoadTimeout, ModelTooLarge, NoCapacity, http_status_of
from modelmesh.journal import Did
from modelmesh.mesh.views import State
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage, raised


def test_concurrent_faults_for_one_model_make_one_load() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("iris", Artefact(load_s=0.1))
            requests = [stage.ask("iris") for _ in range(64)]
            answers = [await request.answer for request in requests]
            assert {answer.code for answer in answers} == {Code.OK}
            assert stage.runtime.loads == ["iris"]
            (loaded,) = stage.told(Did.LOADED)
            assert loaded.numbers["waiting"] == 64 or loaded.numbers["waiting"] == 1

    run(scene())


def test_the_more_urgent_load_goes_first() -> None:
    async def scene() -> None:
        async with Stage(max_loads=1) as stage:
            for model in ("running", "lonely", "wanted"):
                await stage.register(model, Artefact(load_s=0.5))
            first = stage.ask("running")
            await stage.until(lambda: stage.runtime.busy != {})
            lonely = stage.ask("lonely")
            wanted = [stage.ask("wanted") for _ in range(9)]
            for request in (first, lonely, *wanted):
                assert (await request.answer).code is Code.OK
            assert stage.runtime.loads == ["running", "wanted", "lonely"]

    run(scene())


def test_a_load_asked_for_waits_behind_requests_but_not_for_ever() -> None:
    async def scene() -> None:
        async with Stage(max_loads=1) as stage:
            for model in ("asked", *(f"m{index}" for index in range(40))):
                await stage.register(model, Artefact(load_s=1.0))
            requests = [stage.ask("m0", 100.0)]
            await stage.until(lambda: stage.runtime.busy != {})
            asked = asyncio.ensure_future(stage.mesh.load("asked"))
            for index in range(1, 40):
                requests.append(stage.ask(f"m{index}", 100.0))
                await asyncio.sleep(0.5)
            await asked
            assert 9 < stage.runtime.loads.index("asked") < 15, (
                "after ten seconds it is as urgent as they are"
            )
            for request in requests:
                assert (await request.answer).code is Code.OK

    run(scene())


def test_no_slot_is_held_while_memory_is_awaited() -> None:
    """The head waits for an unload; a small load passes, because it does not delay the head."""

    async def scene() -> None:
        async with Stage(budget_bytes=1000, max_loads=1) as stage:
            await stage.register("old", Artefact(size_bytes=700, unload_s=2.0))
            await stage.register("big", Artefact(size_bytes=800))
            await stage.register("small", Artefact(size_bytes=150))
            assert (await stage.ask("old").answer).code is Code.OK
            await asyncio.sleep(0.1)
            big = stage.ask("big")
            await stage.until(lambda: stage.mesh.instance().ledger.unloading_bytes == 700)
            small = stage.ask("small")
            assert (await small.answer).code is Code.OK
            view = stage.mesh.instance()
            assert view.ledger.unloading_bytes == 700 and view.loads_running == 0
            assert stage.mesh.model("big").state is State.QUEUED
            assert (await big.answer).code is Code.OK

    run(scene())


def test_a_small_load_may_not_take_what_the_head_waits_for() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000, max_loads=2) as stage:
            await stage.register("old", Artefact(size_bytes=700, unload_s=2.0))
            await stage.register("big", Artefact(size_bytes=900))
            await stage.register("small", Artefact(size_bytes=250))
            await stage.ask("old").answer
            await asyncio.sleep(0.1)
            big = [stage.ask("big") for _ in range(3)]
            await stage.until(lambda: stage.mesh.instance().ledger.unloading_bytes == 700)
            small = stage.ask("small")
            for request in (*big, small):
                assert (await request.answer).code is Code.OK
            assert stage.runtime.loads == ["old", "big", "small"]

    run(scene())


def test_a_measured_size_above_the_reservation_evicts_at_once_and_admits_nothing_until_paid() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await stage.register("first", Artefact(size_bytes=400, unload_s=0.2))
            await stage.register("liar", Artefact(size_bytes=900, estimate_bytes=300))
            await stage.register("next", Artefact(size_bytes=50))
            await stage.ask("first").answer
            await stage.ask("liar").answer
            view = stage.mesh.instance().ledger
            assert view.free_bytes < 0 and view.unloading_bytes == 400
            waiting = stage.ask("next")
            await asyncio.sleep(0.1)
            assert stage.mesh.model("next").state is State.QUEUED
            assert (await waiting.answer).code is Code.OK
            assert stage.mesh.instance().ledger.free_bytes == 50
            (evicted,) = stage.told(Did.EVICTED)
            assert evicted.model == "first" and "larger than planned" in evicted.reason

    run(scene())


def test_a_model_larger_than_the_budget_is_told_the_numbers() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1 << 20) as stage:
            await stage.register("giant", Artefact(size_bytes=3 << 20))
            answer = await stage.ask("giant").answer
            assert answer.code is Code.RESOURCE_EXHAUSTED and answer.retry_after_ms == -1
            assert (
                "needs 3.00 MiB" in answer.message
                and "raise the memory by at least 2.00 MiB" in answer.message
            )
            error = await raised(stage.mesh.load("giant"))
            assert isinstance(error, ModelTooLarge) and http_status_of(error) == 507
            assert stage.mesh.model("giant").state is State.FAILED and not stage.mesh.servable("giant")
            assert "giant" not in stage.runtime.loads

            stage.runtime.resize(4 << 20)
            await asyncio.sleep(1.1)
            assert (await stage.ask("giant").answer).code is Code.OK

    run(scene())


def test_a_load_that_only_held_models_stand_in_the_way_of_is_refused_with_numbers() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await stage.register("pinned", Artefact(size_bytes=800))
            await stage.register("other", Artefact(size_bytes=800))
            stage.mesh.hold("pinned", "a pin")
            await stage.mesh.ensure_loaded("pinned", why="a test")
            answer = await stage.ask("other").answer
            assert answer.code is Code.RESOURCE_EXHAUSTED and answer.retry_after_ms == 1000
            assert "held by models that may not be evicted" in answer.message
            stage.mesh.release("pinned", "a pin")
            assert (await stage.ask("other").answer).code is Code.OK

    run(scene())


def test_an_estimate_that_includes_an_import_is_made_anew_when_another_load_imported() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000, max_loads=1) as stage:
            for model in ("first", "second", "third"):
                await stage.register(model, Artefact(size_bytes=200, base_bytes=500, load_s=0.1))
            requests = [stage.ask(model) for model in ("first", "second", "third")]
            for request in requests:
                assert (await request.answer).code is Code.OK
            assert [entry.numbers["reserved_bytes"] for entry in stage.told(Did.LOADING)] == [700, 200, 200]

    run(scene())


def test_a_load_kept_out_holds_up_nobody_else_and_waits_a_little() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await stage.register("large", Artefact(size_bytes=900))
            await stage.register("small", Artefact(size_bytes=100))
            stage.runtime.resize(1000, unattributed_bytes=300)
            await asyncio.sleep(0.01)
            large, small = stage.ask("large"), stage.ask("small")
            assert (await small.answer).code is Code.OK and not large.answer.done()
            await asyncio.sleep(1.0)
            stage.runtime.resize(1000, unattributed_bytes=50)
            assert (await large.answer).code is Code.OK

            stage.runtime.resize(1000, unattributed_bytes=300)
            await stage.mesh.unload("large")
            answer = await stage.ask("large").answer
            assert (
                answer.code is Code.RESOURCE_EXHAUSTED
                and "300 B are in use by none of them" in answer.message
            )

    run(scene())


def test_nobody_is_evicted_in_vain() -> None:
    """Neither for a model that never fits, behind a head that waits, nor for one that held models keep out."""

    async def scene() -> None:
        async with Stage(budget_bytes=1000, max_loads=3) as stage:
            await stage.register("pinned", Artefact(size_bytes=500))
            stage.mesh.hold("pinned", "a pin")
            await stage.mesh.ensure_loaded("pinned", why="a test")
            for model in ("x", "y"):
                await stage.register(model, Artefact(size_bytes=200))
                await stage.ask(model).answer
            await stage.register("head", Artefact(size_bytes=250))
            await stage.register("giant", Artefact(size_bytes=5000))
            await stage.register("kept out", Artefact(size_bytes=600))
            await asyncio.sleep(0.1)
            codes = {name: (await stage.ask(name).answer).code for name in ("giant", "kept out")}
            assert set(codes.values()) == {Code.RESOURCE_EXHAUSTED} and not stage.told(Did.EVICTED)
            requests = {name: stage.ask(name) for name in ("head", "giant", "kept out")}
            assert (await requests["head"].answer).code is Code.OK
            assert len(stage.told(Did.EVICTED)) == 1

    run(scene())


def test_holds_for_a_first_use_yield_to_requests() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await stage.register("asked", Artefact(size_bytes=800))
            await stage.register("other", Artefact(size_bytes=800))
            view = await stage.mesh.load("asked")
            assert view.state is State.LOADED and view.pinned_by == "ensure loaded"
            error = await raised(stage.mesh.load("other", timeout_s=5.0))
            assert isinstance(error, NoCapacity)
            await asyncio.sleep(0.1)
            assert (await stage.ask("other").answer).code is Code.OK

    run(scene())


def test_a_hold_ends_with_the_first_use() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("asked")
            await stage.mesh.load("asked")
            await stage.ask("asked").answer
            await asyncio.sleep(0.3)
            assert stage.mesh.model("asked").pinned_by == ""

    run(scene())


def test_a_bad_artefact_is_refused_at_once_while_its_failure_stands() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            artefact = await stage.register(
                "bad", Artefact(load_s=0.5, error=LoadFailed("No such format.", code=Code.INVALID_ARGUMENT))
            )
            first = await stage.ask("bad").answer
            assert (first.code, first.retry_after_ms) == (Code.INVALID_ARGUMENT, -1)
            assert re.fullmatch(r"No such format\. \(Tried again in (6|7|8|9|10) min\.\)", first.message)
            await asyncio.sleep(5.0)
            asked_s = stage.clock.monotonic_s()
            second = await stage.ask("bad").answer
            assert second.code is Code.INVALID_ARGUMENT and stage.clock.monotonic_s() == asked_s
            failure = stage.mesh.model("bad").failure
            assert failure is not None and failure.permanent and failure.count == 1
            assert failure.expires_wall_s - failure.at_wall_s > 300
            assert stage.runtime.loads == ["bad"] and not stage.runtime.residue

            artefact.error = None
            assert (await stage.mesh.load("bad")).state is State.LOADED, (
                "asking for it tries in spite of the failure"
            )
            assert stage.mesh.model("bad").failure is None

    run(scene())


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.UNAVAILABLE])
def test_what_was_away_is_served_a_second_after_it_is_back(code: Code) -> None:
    async def scene() -> None:
        async with Stage() as stage:
            away = LoadFailed("There is nothing at /models/m.", code=code)
            artefact = await stage.register("m", Artefact(error=away))
            began_s = stage.clock.monotonic_s()
            while stage.clock.monotonic_s() < began_s + 60.0:
                answer = await stage.ask("m").answer
                assert answer.code is code
                assert re.fullmatch(r".*/m\. \(Tried again in [12] s\.\)", answer.message)
                assert (answer.retry_after_ms == -1) is (code is Code.NOT_FOUND)
                await asyncio.sleep(0.2)
            assert 40 < len(stage.runtime.loads) < 80
            assert len(stage.told(Did.LOAD_FAILED)) == 6, "it is told the first, second, fourth, … time"
            artefact.error = None
            await asyncio.sleep(1.3)
            assert (await stage.ask("m").answer).code is Code.OK

    run(scene())


def test_a_try_that_took_long_is_not_repeated_at_once() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            away = LoadFailed("The storage does not answer.", code=Code.UNAVAILABLE)
            await stage.register("m", Artefact(load_s=5.0, error=away))
            answer = await stage.ask("m").answer
            assert answer.retry_after_ms == pytest.approx(10_000, abs=1)

    run(scene())


def test_other_passing_failures_back_off_and_say_when_to_return() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            artefact = await stage.register("m", Artefact(error=LoadFailed("Torn.", code=Code.INTERNAL)))
            waits_ms = []
            for _ in range(4):
                answer = await stage.ask("m").answer
                assert answer.code is Code.INTERNAL
                waits_ms.append(answer.retry_after_ms)
                await asyncio.sleep(answer.retry_after_ms / 1000 + 0.001)
            for step, wait_ms in enumerate(waits_ms):
                assert 0.75 * 2**step <= wait_ms / 1000 <= 1.25 * 2**step + 0.001
            assert len(stage.told(Did.LOAD_FAILED)) == 4
            artefact.error = None
            assert (await stage.ask("m").answer).code is Code.OK

    run(scene())


def test_one_that_loads_again_ends_the_waiting_of_all_but_bad_artefacts() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            errors = {
                "away": LoadFailed("The storage does not answer.", code=Code.UNAVAILABLE),
                "torn": LoadFailed("Torn.", code=Code.INTERNAL),
                "bad": LoadFailed("No such format.", code=Code.INVALID_ARGUMENT),
            }
            artefacts = {
                model: await stage.register(model, Artefact(error=errors[model])) for model in errors
            }
            for _ in range(40):
                for model in ("torn", "bad"):
                    assert (await stage.ask(model).answer).code is errors[model].code
                await asyncio.sleep(1.0)
            assert (await stage.ask("away").answer).code is Code.UNAVAILABLE
            for artefact in artefacts.values():
                artefact.error = None
            assert (await stage.ask("torn").answer).code is Code.INTERNAL
            await stage.mesh.load("away")
            await asyncio.sleep(1.0)  # so long the data plane knows what was refused
            codes = [(await stage.ask(model).answer).code for model in artefacts]
            assert codes == [Code.OK, Code.OK, Code.INVALID_ARGUMENT]
            (told,) = [entry for entry in stage.told(Did.REVIVED) if not entry.model]
            assert told.reason.startswith("Model away loads again: 1 other that failed may, too")

    run(scene())


def test_a_load_that_takes_too_long_is_stopped_cleaned_up_and_frees_its_bytes() -> None:
    async def scene() -> None:
        async with Stage(load_timeout_s=2.0) as stage:
            await stage.register("slow", Artefact(load_s=60.0))
            answer = await stage.ask("slow", 30.0).answer
            assert answer.code is Code.DEADLINE_EXCEEDED and "not done within 2 s" in answer.message
            assert isinstance(await raised(stage.mesh.load("slow")), LoadTimeout)
            await asyncio.sleep(0.1)
            assert not stage.runtime.residue and stage.mesh.instance().ledger.loading_bytes == 0

    run(scene())


def test_an_unexpected_error_of_the_runtime_is_a_failed_load() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m")

            async def broken(*_: object) -> None:
                raise ZeroDivisionError("oops")

            stage.runtime.load = broken  # type: ignore[assignment,method-assign]
            answer = await stage.ask("m").answer
            assert answer.code is Code.INTERNAL and "ZeroDivisionError: oops" in answer.message
            assert stage.mesh.instance().ledger.loading_bytes == 0

    run(scene())


def test_a_queued_load_nobody_waits_for_leaves_the_queue() -> None:
    async def scene() -> None:
        async with Stage(max_loads=1) as stage:
            await stage.register("running", Artefact(load_s=1.0))
            await stage.register("given up")
            await stage.register("cancelled")
            running = stage.ask("running")
            await stage.until(lambda: stage.runtime.busy != {})
            given_up, cancelled = stage.ask("given up", 0.2), stage.ask("cancelled")
            await asyncio.sleep(0.01)
            assert stage.mesh.instance().loads_queued == 2
            cancelled.cancel()
            assert (await given_up.answer).code is Code.DEADLINE_EXCEEDED
            await asyncio.sleep(0.01)
            assert stage.mesh.instance().loads_queued == 0
            assert (await running.answer).code is Code.OK
            assert stage.runtime.loads == ["running"]
            assert stage.mesh.measures.counters["modelmesh_loads_abandoned"] == 2

    run(scene())


def test_a_running_load_goes_on_when_its_last_request_leaves() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m", Artefact(load_s=1.0))
            assert (await stage.ask("m", 0.3).answer).code is Code.DEADLINE_EXCEEDED
            await stage.until(lambda: stage.mesh.model("m").state is State.LOADED)
            assert (await stage.ask("m", 0.1).answer).code is Code.OK

    run(scene())


def test_who_cannot_be_in_time_is_refused_at_once_and_the_others_wait() -> None:
    async def scene() -> None:
        async with Stage(max_loads=1, budget_bytes=1000) as stage:
            for model in ("a", "b"):
                await stage.register(model, Artefact(size_bytes=600, load_s=2.0))
                await stage.ask(model).answer
            await asyncio.sleep(6.0)
            asked_s = stage.clock.monotonic_s()
            hasty, patient = stage.ask("a", 1.0), stage.ask("a", 20.0)
            answer = await hasty.answer
            assert answer.code is Code.RESOURCE_EXHAUSTED and answer.retry_after_ms >= 1900
            assert stage.clock.monotonic_s() - asked_s < 0.01
            assert (await patient.answer).code is Code.OK

    run(scene())


def test_a_model_whose_clients_are_all_too_hasty_is_loaded_for_their_return() -> None:
    async def scene() -> None:
        async with Stage(max_loads=1, budget_bytes=1000) as stage:
            for model in ("a", "b", "c"):
                await stage.register(model, Artefact(size_bytes=600, load_s=2.0))
                await stage.ask(model, 20.0).answer
            await asyncio.sleep(6.0)
            busy = stage.ask("b", 20.0)
            await stage.until(lambda: stage.runtime.busy.get("b") == "load")
            answer = await stage.ask("a", 1.0).answer
            assert answer.code is Code.RESOURCE_EXHAUSTED
            assert "it can be ready in" in stage.told(Did.REFUSED, "a")[-1].reason
            await busy.answer
            await stage.until(lambda: stage.mesh.model("a").state is State.LOADED)
            assert (await stage.ask("a", 0.1).answer).code is Code.OK

    run(scene())


def test_learned_facts_reserve_what_the_model_really_weighs() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await stage.register("m", Artefact(size_bytes=200, estimate_bytes=900, load_s=0.25))
            await stage.ask("m").answer
            await stage.until(
                lambda: (record := stage.mirror.model("m")) is not None and record.size_bytes == 200
            )
            record = stage.mirror.model("m")
            assert record is not None and record.load_ms == 250
            await stage.mesh.unload("m")
            await stage.ask("m").answer
            assert [entry.numbers["reserved_bytes"] for entry in stage.told(Did.LOADING)] == [900, 200]

    run(scene())


def test_register_with_load_now_loads_and_a_failure_shows_in_the_view() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            from modelmesh.mesh.control import Registration

            stage.artefacts["good"] = Artefact(load_s=0.5)
            stage.artefacts["bad"] = Artefact(error=LoadFailed("Broken.", code=Code.INVALID_ARGUMENT))
            view = await stage.mesh.register(Registration("g", "fake", "good"), load_now=True)
            assert view.state is State.QUEUED
            view = await stage.mesh.register(Registration("g", "fake", "good"), load_now=True, sync=True)
            assert view.state is State.LOADED
            view = await stage.mesh.register(Registration("b", "fake", "bad"), load_now=True, sync=True)
            assert view.state is State.FAILED or view.failure is not None

    run(scene())


def test_a_kind_of_name_matters_only_for_what_it_may_mean() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            for model in ("m", "both", "target", "v1"):
                await stage.register(model)
            for vmodel, target in (("v", "target"), ("both", "target"), ("v:7", "v1")):
                await stage.mesh.set_vmodel(vmodel, target)
            cases = [
                ("m", NameKind.MODEL, "", "m"), ("v", NameKind.MODEL, "", None), ("both", NameKind.MODEL, "", "both"),
                ("m", NameKind.VMODEL, "", None), ("both", NameKind.VMODEL, "", "target"),
                ("both", NameKind.MODEL_FIRST, "", "both"), ("v", NameKind.MODEL_FIRST, "", "target"),
                ("both", NameKind.VMODEL_FIRST, "", "target"), ("m", NameKind.VMODEL_FIRST, "", "m"),
                ("v", NameKind.VMODEL_FIRST, "7", "v1"), ("v", NameKind.VMODEL_FIRST, "8", "target"),
                ("m", NameKind.MODEL, "7", "m"), ("v:7", NameKind.VMODEL, "", "v1"),
            ]  # fmt: skip
            for name, kind, version, means in cases:
                answer = await stage.ask(name, kind=kind, version=version).answer
                if means is None:
                    what = "vmodel" if kind is NameKind.VMODEL else "model"
                    assert answer.code is Code.NOT_FOUND
                    assert answer.message.startswith(f"{what} not found: {name}; see ")
                else:
                    assert (answer.code, answer.model) == (Code.OK, means), (name, kind, version)

    run(scene())


def _learned_bytes(stage: Stage, model: str) -> int:
    record = stage.mirror.model(model)
    assert record is not None
    return record.size_bytes


def test_a_spread_model_is_charged_for_all_its_replicas_and_learned_by_one() -> None:
    async def scene() -> None:
        async with Stage(targets=2) as stage:
            await stage.register("m", Artefact(size_bytes=700))
            await stage.ask("m").answer
            stage.runtime.spread("m")
            await stage.until(lambda: len(stage.dataplane.routes["m"]) == 2)
            assert stage.mesh.instance().ledger.loaded_bytes == 1400
            stage.runtime.measure("m")
            await stage.until(lambda: _learned_bytes(stage, "m") > 0, 120.0)
            assert _learned_bytes(stage, "m") == 700
            stage.runtime.spread("m")
            await stage.until(lambda: len(stage.dataplane.routes["m"]) == 1)
            assert stage.mesh.instance().ledger.loaded_bytes == 700

    run(scene())


def test_a_size_measured_late_is_not_learned_for_what_took_the_id_over() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m", Artefact(size_bytes=700, unload_s=0.5))
            await stage.ask("m").answer
            await stage.until(lambda: _learned_bytes(stage, "m") == 700, 120.0)
            await stage.mesh.unregister("m")
            await stage.register("m", Artefact(size_bytes=90_000))
            await stage.until(lambda: "m" in stage.runtime.busy)
            stage.runtime.measure("m")
            await asyncio.sleep(120.0)
            assert "m" not in stage.runtime.loaded and _learned_bytes(stage, "m") == 0

    run(scene())
