"""One flight per model at its keeper: who joins it, who presses it on, what becomes of it when nobody waits any more."""

from __future__ import annotations

import asyncio

import pytest

from modelmesh.dataplane.protocol import Fault, Name, NameKind
from modelmesh.errors import Code, LoadFailed, LoadTimeout
from modelmesh.mesh.views import State
from modelmesh.peers.protocol import Ask
from modelmesh.policy.urgency import Why
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage, raised
from modelmesh.testing.theatre import Theatre


def keeper(theatre: Theatre, model: str) -> Stage:
    (found,) = [stage for stage in theatre if stage.mesh._others and stage.mesh._others.provider.keeps(model)]
    return found


async def busy(theatre: Theatre) -> None:
    """All slots of all instances load for a second."""
    for index, stage in enumerate(theatre):
        for slot in range(stage.runtime.max_loads):
            model = f"busy-{index}-{slot}"
            await theatre.register(model, Artefact(load_s=1.0))
            stage.mesh._asks.begin(model)


def test_a_queued_load_leaves_the_queue_when_nobody_waits_for_it_any_more() -> None:
    async def scene() -> None:
        async with Theatre(3, max_loads=1) as theatre:
            await theatre.register("iris")
            await busy(theatre)
            requests = [stage.ask("iris", 0.5) for stage in theatre]
            await asyncio.sleep(0.2)
            queued = [stage.mesh.copy("iris") for stage in theatre]
            assert [copy.state for copy in queued if copy is not None] == [State.QUEUED]
            answers = [await request.answer for request in requests]
            assert {answer.code for answer in answers} == {Code.DEADLINE_EXCEEDED}
            await asyncio.sleep(0.1)
            assert [stage.mesh.copy("iris") for stage in theatre] == [None] * 3
            await theatre.settled()
            assert theatre.loads("iris") == 0
            theatre.check()

    run(scene())


def test_the_keeper_is_asked_before_the_requests_come_back_for_the_model() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("iris")
            await theatre.register("bad", Artefact(error=LoadFailed("No model.", code=Code.INVALID_ARGUMENT)))
            for stage in theatre:
                await stage.ask("bad").answer
            loads = theatre.loads("bad")
            for name in ("iris", "bad"):
                asked = Fault(Name(NameKind.MODEL_FIRST, name), "", 1, 5_000, 5_000)
                theatre["a"].mesh.handle_events([asked])
            await theatre.settled()
            assert len(theatre.holders("iris")) == theatre.loads("iris") == 1
            assert theatre.loads("bad") == loads, "what failed everywhere is not tried for a name alone"

    run(scene())


def test_a_load_that_began_goes_on_when_nobody_waits_for_it_any_more() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("iris", Artefact(load_s=1.0))
            answers = [await stage.ask("iris", 0.3).answer for stage in theatre]
            assert {answer.code for answer in answers} == {Code.DEADLINE_EXCEEDED}
            await theatre.settled()
            assert len(theatre.holders("iris")) == theatre.loads("iris") == 1
            theatre.check()

    run(scene())


def test_a_call_that_gives_up_is_told_that_the_load_takes_longer_wherever_it_asked() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("iris", Artefact(load_s=2.0))
            for stage in theatre:
                error = await raised(stage.mesh.load("iris", timeout_s=0.4))
                assert isinstance(error, LoadTimeout), error

    run(scene())


def test_whoever_waits_longer_than_the_first_is_served() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("iris", Artefact(load_s=1.0))
            entry = next(stage for stage in theatre if stage is not keeper(theatre, "iris"))
            hasty = entry.ask("iris", 0.3)
            await asyncio.sleep(0.1)
            patient = entry.ask("iris", 5.0)
            assert (await hasty.answer).code is Code.DEADLINE_EXCEEDED
            assert (await patient.answer).code is Code.OK
            assert theatre.loads("iris") == 1
            theatre.check()

    run(scene())


def test_a_request_presses_on_a_load_that_was_only_expected_to_be_useful() -> None:
    async def scene() -> None:
        async with Theatre(3, max_loads=1) as theatre:
            for model in ("iris", "rose"):
                await theatre.register(model, Artefact(load_s=0.5))
            await busy(theatre)
            others = keeper(theatre, "iris").mesh._others
            assert others is not None
            expected = asyncio.create_task(others.provider.provide(Ask("iris", 60.0, Why.SCALE, "a test")))
            await asyncio.sleep(0.1)
            (copy,) = [copy for stage in theatre if (copy := stage.mesh.copy("iris")) is not None]
            assert copy.want is not None and copy.want.why is Why.SCALE and copy.want.gentle
            request = next(iter(theatre)).ask("iris")
            await asyncio.sleep(0.1)
            assert copy.want.why is Why.URGENT and not copy.want.gentle
            assert (await request.answer).code is Code.OK
            assert (await expected).holder in theatre.holders("iris")
            assert theatre.loads("iris") == 1
            theatre.check()

    run(scene())


def test_instances_whose_event_loops_are_late_wait_for_each_other() -> None:
    """A busy machine: whoever went elsewhere would make a second copy, on a machine that is busy enough."""

    async def scene() -> None:
        async with Theatre(4) as theatre:
            models = [f"m{index}" for index in range(20)]
            for model in models:
                await theatre.register(model, Artefact(load_s=0.01))
            for id, late_s in zip(theatre.ids, (0.6, 1.2, 1.8, 2.4), strict=True):
                theatre.network.hold_up(id, late_s)
            answers = [stage.ask(model, 10.0).answer for model in models for stage in theatre]
            assert {(await answer).code for answer in answers} == {Code.OK}
            await theatre.settled()
            assert [theatre.loads(model) for model in models] == [1] * len(models)
            theatre.check()

    run(scene())


def test_an_instance_that_loads_and_whose_event_loop_is_late_is_waited_for() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("iris", Artefact(load_s=0.5))
            answers = [stage.ask("iris", 10.0).answer for stage in theatre]
            await asyncio.sleep(0.2)
            ((id, _),) = [
                (id, copy) for id in theatre.ids if (copy := theatre[id].mesh.copy("iris")) is not None
            ]
            theatre.network.hold_up(id, 3.0)
            answers += [stage.ask("iris", 10.0).answer for stage in theatre]
            assert {(await answer).code for answer in answers} == {Code.OK}
            await theatre.settled()
            assert theatre.loads("iris") == 1
            theatre.check()

    run(scene())


def test_a_keeper_that_hangs_is_passed_over_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("iris", Artefact(load_s=0.1))
            hung = keeper(theatre, "iris")
            id = hung.peers.me.id if hung.peers is not None else ""
            others = [stage for stage in theatre if stage is not hung]
            reached: list[tuple[str, bool]] = []
            for stage in others:
                monkeypatch.setattr(stage.peers, "reached", lambda *told: reached.append(told))
            theatre.freeze(id)
            began_s = asyncio.get_running_loop().time()
            answers = [stage.ask("iris", 10.0).answer for stage in others]
            assert {(await answer).code for answer in answers} == {Code.OK}
            assert asyncio.get_running_loop().time() - began_s < 1.0
            theatre.mend()
            await theatre.settled()
            assert sorted(reached) == [*3 * [(id, False)], *3 * [(id, True)]], "the links are told"
            theatre.check()

    run(scene())


def test_what_a_silent_instance_holds_is_loaded_elsewhere_on_half_of_the_slots() -> None:
    async def scene() -> None:
        async with Theatre(3, max_loads=4) as theatre:
            models = [f"m{index}" for index in range(24)]
            for model in models:
                await theatre.register(model, Artefact(size_bytes=100, load_s=0.3))
                await theatre["c"].mesh._asks.load(model, "a test", False, 10.0)
            await theatre.settled()
            theatre.freeze("c")
            await asyncio.sleep(2.5)
            requests = [theatre["a"].ask(model, 20.0) for model in models]
            busiest = 0
            while not all(request.answer.done() for request in requests):
                await asyncio.sleep(0.01)
                for id in "ab":
                    loading = [kind for kind in theatre[id].runtime.busy.values() if kind == "load"]
                    busiest = max(busiest, len(loading))
            assert {request.answer.result().code for request in requests} == {Code.OK}
            assert busiest == 2
            theatre.mend()
            await theatre.settled()
            theatre.check()

    run(scene())


def test_an_instance_that_is_cut_off_from_all_others_serves_what_it_can_load() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("iris", Artefact(load_s=0.1))
            await theatre["d"].mesh._asks.load("iris", "a test", False, 10.0)
            await theatre.settled()
            for id in "bcd":
                theatre.network.cut("a", id)
            await asyncio.sleep(2.0)
            fleet = theatre["a"].mesh.fleet
            assert fleet is not None and fleet.doubts_itself
            assert (await theatre["a"].ask("iris", 5.0).answer).code is Code.OK
            assert (await theatre["b"].ask("iris", 5.0).answer).code is Code.OK
            assert theatre.holders("iris") == ["a", "d"]
            theatre.mend()
            await theatre.settled()
            theatre.check()

    run(scene())
