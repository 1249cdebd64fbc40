"""Making room without cutting anything; what vanishes by itself comes back when it is wanted."""

from __future__ import annotations

import asyncio

from modelmesh.dataplane.protocol import NotHere
from modelmesh.errors import Code, LoadTimeout, ModelNotFound
from modelmesh.journal import Did
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State
from modelmesh.runtime.protocol import CopyLost, SizeChanged, UnloadGivenUp
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage, raised

SHORT = Tuning(retire_timeout_s=0.5, unload_retry_s=0.1)


async def three(stage: Stage) -> None:
    """Three models, of which the budget of 1000 holds two."""
    for model in ("a", "b", "c"):
        await stage.register(model, Artefact(size_bytes=450))


def test_an_eviction_is_explained_with_numbers_and_the_counterfactual() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await three(stage)
            for model in ("a", "b", "b", "b"):
                await stage.ask(model).answer
                await asyncio.sleep(0.3)
            assert (await stage.ask("c").answer).code is Code.OK
            (evicted,) = stage.told(Did.EVICTED)
            assert evicted.model == "a", "b was used more"
            assert (
                "to make room for c" in evicted.reason
                and "it would have stayed with 350 B more" in evicted.reason
            )
            assert evicted.numbers["size_bytes"] == 450 and evicted.numbers["needed_bytes"] == 350
            assert stage.mesh.instance().evictions_total == 1
            assert stage.mesh.measures.histograms["modelmesh_age_at_eviction_milliseconds"].count == 1

    run(scene())


def test_copies_with_requests_in_flight_are_the_last_choice() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await three(stage)
            for _ in range(5):
                await stage.ask("b").answer
                await asyncio.sleep(0.3)
            await stage.ask("a").answer
            long = stage.ask("a", 60.0, execution_s=20.0)
            await asyncio.sleep(0.3)
            await stage.ask("c").answer
            assert [entry.model for entry in stage.told(Did.EVICTED)] == ["b"], "a is worth less but busy"
            assert (await long.answer).code is Code.OK

    run(scene())


def test_a_fault_for_a_retiring_copy_revives_it() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await three(stage)
            await stage.ask("a").answer
            busy = [stage.ask("b", 60.0, 2.0), stage.ask("a", 60.0, 2.0)]
            await asyncio.sleep(0.3)
            waiting = stage.ask("c", 60.0)
            await stage.until(lambda: bool(stage.told(Did.EVICTED)))
            first = stage.told(Did.EVICTED)[0].model
            again = await stage.ask(first, 60.0).answer
            assert again.code is Code.OK
            assert "1 request came for it" in stage.told(Did.REVIVED, first)[0].reason
            assert stage.runtime.loads.count(first) == 1, "it was never unloaded"
            for request in (*busy, waiting):
                assert (await request.answer).code is Code.OK

    run(scene())


def test_a_victim_whose_requests_do_not_end_is_spared_and_another_chosen() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000, tuning=SHORT) as stage:
            await three(stage)
            for model in ("a", "b"):
                await stage.ask(model).answer
            stuck = stage.ask("a", 60.0, 10.0)
            short = stage.ask("b", 60.0, 1.0)
            await asyncio.sleep(0.3)
            waiting = stage.ask("c", 60.0)
            assert (await waiting.answer).code is Code.OK
            assert stage.clock.monotonic_s() < 5.0
            assert (await short.answer).code is Code.OK and (await stuck.answer).code is Code.OK
            assert stage.mesh.model("a").state is State.LOADED

    run(scene())


def test_the_retirement_is_off_when_nobody_needs_the_room_any_more() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await three(stage)
            for model in ("a", "b"):
                await stage.ask(model).answer
            busy = [stage.ask("a", 60.0, 2.0), stage.ask("b", 60.0, 2.0)]
            await asyncio.sleep(0.3)
            stage.ask("c", 60.0).cancel()
            gone = stage.ask("c", 0.2)
            await stage.until(lambda: bool(stage.told(Did.EVICTED)))
            assert (await gone.answer).code is Code.DEADLINE_EXCEEDED
            await asyncio.sleep(0.01)
            assert "nobody waits" in stage.told(Did.REVIVED)[0].reason
            for request in busy:
                assert (await request.answer).code is Code.OK
            assert stage.mesh.instance().models_loaded == 2

    run(scene())


def test_a_failing_unload_keeps_its_bytes_charged_and_is_tried_again() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000, tuning=SHORT) as stage:
            await stage.register("stubborn", Artefact(size_bytes=800, unload_errors=2))
            await stage.register("next", Artefact(size_bytes=800))
            await stage.ask("stubborn").answer
            await asyncio.sleep(0.1)
            waiting = stage.ask("next")
            await stage.until(lambda: bool(stage.told(Did.WARNED)))
            assert stage.mesh.instance().ledger.unloading_bytes == 800
            assert stage.mesh.model("next").state is State.QUEUED
            assert (await waiting.answer).code is Code.OK
            assert stage.mesh.measures.counters["modelmesh_unloadmodel_attempt_failure"] == 2

    run(scene())


def test_a_fault_during_the_unload_loads_it_again_afterwards() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m", Artefact(unload_s=1.0))
            await stage.ask("m").answer
            unload = asyncio.ensure_future(stage.mesh.unload("m"))
            await stage.until(lambda: stage.mesh.model("m").state is State.UNLOADING)
            again = stage.ask("m")
            await unload
            assert (await again.answer).code is Code.OK
            assert stage.runtime.loads == ["m", "m"] and not stage.runtime.violations

    run(scene())


def test_unload_waits_for_requests_and_says_so_when_it_cannot() -> None:
    async def scene() -> None:
        async with Stage(tuning=SHORT) as stage:
            await stage.register("m")
            await stage.ask("m").answer
            long = stage.ask("m", 60.0, 3.0)
            error = await raised(stage.mesh.unload("m", timeout_s=1.0))
            assert isinstance(error, LoadTimeout) and "requests have not ended" in str(error)
            assert (await long.answer).code is Code.OK
            await stage.until(lambda: stage.mesh.model("m").state is State.COLD)
            assert isinstance(await raised(stage.mesh.unload("nobody")), ModelNotFound)
            assert (await stage.mesh.unload("m")).state is State.COLD

    run(scene())


def test_a_lost_copy_frees_its_bytes_and_its_requests_are_served_after_the_reload() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m", Artefact(load_s=0.2))
            await stage.ask("m").answer
            target = stage.runtime.loaded["m"][1][0].target_id
            running = stage.ask("m", 10.0, 1.0)
            await asyncio.sleep(0.1)
            stage.dataplane.lose_target(target)
            await asyncio.sleep(0.05)
            stage.runtime.crash_target(target)
            await asyncio.sleep(0.01)
            assert stage.mesh.instance().ledger.loaded_bytes == 0
            assert (await running.answer).code is Code.OK
            assert stage.runtime.loads == ["m", "m"]
            assert "server" in stage.told(Did.LOST, "m")[0].reason

    run(scene())


def test_a_copy_forgotten_by_its_server_is_noticed_at_the_next_request() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m")
            await stage.ask("m").answer
            for _ in range(2):
                stage.runtime.forget("m")
                assert (await stage.ask("m").answer).code is Code.OK
            assert len(stage.told(Did.LOST, "m")) == 2

    run(scene())


def test_a_copy_whose_servers_are_gone_without_a_word_is_loaded_again() -> None:
    async def scene() -> None:
        async with Stage(targets=1) as stage:
            await stage.register("m")
            await stage.ask("m").answer
            stage.runtime.forget("m")
            stage.runtime.crash_target(stage.runtime.targets[0])
            await asyncio.sleep(0.01)
            assert (await stage.ask("m").answer).code is Code.OK

    run(scene())


def test_a_connection_that_comes_back_serves_what_waited() -> None:
    async def scene() -> None:
        async with Stage(targets=1) as stage:
            await stage.register("m")
            await stage.ask("m").answer
            stage.dataplane.lose_target(1)
            waiting = stage.ask("m")
            await asyncio.sleep(1.0)
            assert not waiting.answer.done() and stage.mesh.model("m").waiting == 1
            stage.dataplane.find_target(1)
            assert (await waiting.answer).code is Code.OK
            assert stage.runtime.loads == ["m"]

    run(scene())


def test_a_moved_replica_is_followed_also_while_it_retires() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m")
            await stage.ask("m").answer
            stage.runtime.move("m")
            await asyncio.sleep(0.01)
            assert (await stage.ask("m").answer).code is Code.OK
            long = stage.ask("m", 30.0, 2.0)
            unload = asyncio.ensure_future(stage.mesh.unload("m"))
            await asyncio.sleep(0.01)
            stage.runtime.move("m")
            await unload
            assert stage.runtime.loaded == {}
            long.cancel()

    run(scene())


def test_a_copy_lost_while_it_retires_leaves_nothing_behind() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000, targets=1) as stage:
            await three(stage)
            for model in ("a", "b"):
                await stage.ask(model).answer
            busy = [stage.ask(model, 60.0, 2.0) for model in ("a", "b")]
            await asyncio.sleep(0.3)
            waiting = stage.ask("c", 60.0)
            await stage.until(lambda: bool(stage.told(Did.EVICTED)))
            stage.dataplane.lose_target(1)
            stage.runtime.crash_target(1)
            await asyncio.sleep(0.01)
            stage.mesh.check()
            for request in (*busy, waiting):
                assert (await request.answer).code is Code.OK
            stage.mesh.check()

    run(scene())


def test_stale_news_changes_nothing() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m")
            await stage.ask("m").answer
            stage.mesh.handle_events([NotHere("m", 999), NotHere("nobody", 1)])
            stage.runtime.emit(CopyLost("nobody", "a test"))
            await asyncio.sleep(0.01)
            assert stage.mesh.model("m").state is State.LOADED and not stage.told(Did.LOST)

    run(scene())


def test_time_spent_on_sizes_and_unloads_given_up_are_counted() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            sizing = stage.mesh.measures.histograms["modelmesh_model_sizing_milliseconds"]
            await stage.register("measured", Artefact(sizing_s=0.003))
            await stage.register("known")
            for model in ("measured", "known"):
                await stage.ask(model).answer
            assert (sizing.count, sizing.sum) == (1, 3.0)
            stage.runtime.emit(SizeChanged("known", 900, 0.002), UnloadGivenUp("measured"))
            await stage.until(lambda: sizing.count == 2)
            assert sizing.sum == 5.0
            assert stage.mesh.measures.counters["modelmesh_unloadmodel_failure"] == 1

    run(scene())


def test_a_provisional_size_is_replaced_by_the_measured_one() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m", Artefact(size_bytes=700, estimate_bytes=500, provisional=True))
            await stage.ask("m").answer
            view = stage.mesh.model("m")
            assert (view.size_bytes, view.size_measured) == (500, False)
            stage.runtime.measure("m")
            await asyncio.sleep(0.01)
            view = stage.mesh.model("m")
            assert (view.size_bytes, view.size_measured) == (700, True)
            assert stage.mesh.instance().ledger.loaded_bytes == 700

    run(scene())


def test_waiters_of_one_load_are_one_use_and_rates_survive_eviction() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m")
            for _ in range(3):
                for request in [stage.ask("m") for _ in range(20)]:
                    await request.answer
                await asyncio.sleep(9.9)
                await stage.mesh.unload("m")
            view = stage.mesh.model("m")
            assert view.requests_total == 60 and view.loads_total == 3
            assert 0.05 < view.requests_per_s < 0.2, "one use in ten seconds, not twenty"

    run(scene())


def test_thrashing_is_said_with_the_bytes_that_would_stop_it() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await three(stage)
            for _ in range(12):
                for model in ("a", "b", "c"):
                    await stage.ask(model).answer
                    await asyncio.sleep(0.1)
            sentence = stage.mesh.instance().thrashing
            assert "does not fit" in sentence and "1.32 KiB more memory" in sentence
            assert "1.32 KiB more memory" in stage.told(Did.WARNED)[0].reason
            await asyncio.sleep(70.0)
            assert stage.mesh.instance().thrashing == ""

    run(scene())
