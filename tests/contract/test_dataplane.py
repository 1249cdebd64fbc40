"""What every data plane promises the control plane: one suite for the relay and for the simulator's fake."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dataplane_world import DEADLINE_MS_MAX, IRIS, TIMEOUT_S, Answer, fake_world, relay_world, run

from modelmesh.dataplane.protocol import (
    Abandoned,
    Fault,
    Name,
    NameKind,
    NotHere,
    Queueing,
    Replica,
    Retired,
    Route,
    Split,
    TargetLost,
)
from modelmesh.errors import Code


@pytest.fixture(params=[fake_world, relay_world], ids=["fake", "relay"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    return lambda: request.param(tmp_path)


def test_a_fault_is_answered_by_a_name_and_a_route(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            asked = w.ask()
            fault = await w.event(Fault)
            assert (fault.name, fault.model) == (IRIS, "")
            assert 0 < fault.earliest_deadline_in_ms <= fault.latest_deadline_in_ms <= DEADLINE_MS_MAX
            w.plane.publish_names([(IRIS, "iris@1")])
            fault = await w.event(Fault)
            assert (fault.name, fault.model) == (IRIS, "iris@1")
            w.plane.publish([Route("iris@1", ())])
            await w.parked("iris@1", 1)
            w.plane.publish([Route("iris@1", (Replica(10, 1),))])
            assert (await asked)[:2] == (Code.OK, "iris@1")
            assert (await w.ask())[:2] == (Code.OK, "iris@1")
            stats = w.plane.stats()
            assert (stats.routes, stats.names, stats.parked_requests) == (1, 1, 0)

    run(test())


def test_many_faults_of_one_model_are_one_event(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.plane.publish_names([(IRIS, "iris@1")])
            asked = [w.ask() for _ in range(64)]
            await w.parked("iris@1", 64)
            assert [type(event) for event in w.events] == [Fault]
            (row,) = w.plane.take_waiting()
            assert 0 <= row.oldest_ms < TIMEOUT_S * 1000
            assert 0 < row.latest_deadline_in_ms <= DEADLINE_MS_MAX
            w.route("iris@1", Replica(10, 1))
            assert {answer.code for answer in await asyncio.gather(*asked)} == {Code.OK}
            assert len(w.events) == 1
            assert not w.plane.take_waiting()

    run(test())


def test_the_descriptor_is_readable_while_events_wait(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            descriptor = w.plane.fileno()
            w.plane.take_events()
            assert not select.select([descriptor], [], [], 0)[0]
            asked = w.ask()
            give_up_s = asyncio.get_running_loop().time() + TIMEOUT_S
            while not select.select([descriptor], [], [], 0)[0]:
                assert asyncio.get_running_loop().time() < give_up_s
                await asyncio.sleep(0.002)
            assert [type(event) for event in w.plane.take_events()] == [Fault]
            assert not select.select([descriptor], [], [], 0)[0]
            assert w.plane.take_events() == []
            asked.cancel()

    run(test())


def test_the_last_to_leave_abandons(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.plane.publish_names([(IRIS, "iris@1")])
            first, second = w.ask(), w.ask(timeout_s=0.5)
            await w.parked("iris@1", 2)
            first.cancel()
            await w.parked("iris@1", 1)
            assert not [event for event in w.events if isinstance(event, Abandoned)]
            assert (await second).code == Code.DEADLINE_EXCEEDED
            assert await w.event(Abandoned) == Abandoned(IRIS, "iris@1")
            unknown = w.ask(Name(NameKind.MODEL_FIRST, "unknown"))
            await w.event(Fault, model="")
            unknown.cancel()
            assert (await w.event(Abandoned)).name.name == "unknown"
            third = w.ask()
            await w.event(Fault, model="iris@1")
            third.cancel()

    run(test())


def test_a_refusal_answers_who_waits_and_while_cached_who_comes(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.plane.publish_names([(IRIS, "iris@1")])
            asked = [w.ask(), w.ask()]
            await w.parked("iris@1", 2)
            w.plane.refuse("iris@1", Code.INTERNAL, "it does not load.", 700, 60_000)
            for answer in await asyncio.gather(*asked):
                assert (answer.code, answer.message, answer.retry_after_ms) == (
                    Code.INTERNAL,
                    "it does not load.",
                    700,
                )
            w.events.clear()
            assert (await w.ask()).code == Code.INTERNAL
            assert not w.plane.take_events()
            w.plane.publish([Route("iris@1", (Replica(10, 1),))])
            assert (await w.ask()).code == Code.OK
            w.plane.publish([Route("iris@1", ())])
            late = w.ask()
            await w.event(Fault, model="iris@1")
            w.plane.refuse("iris@1", Code.NOT_FOUND, "größer als 100 %", -1, 0)
            assert await late == Answer(Code.NOT_FOUND, (await late).model, "größer als 100 %", -1)
            again = w.ask()
            await w.event(Fault, model="iris@1")
            again.cancel()

    run(test())


def test_a_name_is_refused_until_it_is_published_or_forgotten(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            for end in ("publish", "forget"):
                asked = w.ask()
                await w.event(Fault, model="")
                w.plane.refuse_name(IRIS, Code.NOT_FOUND, "no such model.", -1, 60_000)
                assert (await asked).code == Code.NOT_FOUND
                assert (await w.ask()).message == "no such model."
                if end == "publish":
                    w.route("iris@1", Replica(10, 1))
                    assert (await w.ask()).code == Code.OK
                w.plane.forget_names([IRIS])
            asked = w.ask()
            await w.event(Fault, model="")
            asked.cancel()

    run(test())


def test_who_cannot_wait_long_enough_is_refused(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.plane.publish_names([(IRIS, "iris@1")])
            hasty, patient = w.ask(timeout_s=10.0), w.ask(timeout_s=100.0)
            await w.parked("iris@1", 2)
            w.plane.expect("iris@1", 50_000)
            for answer in (await hasty, await w.ask(timeout_s=10.0)):
                assert answer.code == Code.RESOURCE_EXHAUSTED
                assert 45_000 < answer.retry_after_ms <= 50_000
            w.plane.publish([Route("iris@1", (Replica(10, 1),))])
            assert (await patient).code == Code.OK
            w.plane.publish([Route("iris@1", ())])
            asked = w.ask(timeout_s=10.0)
            await w.parked("iris@1", 1)
            asked.cancel()

    run(test())


def test_names_that_move_or_are_forgotten_resolve_again(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.plane.publish_names([(IRIS, "iris@1")])
            asked = w.ask()
            await w.event(Fault, model="iris@1")
            w.plane.publish_names([(IRIS, "iris@1")])
            await w.parked("iris@1", 1)
            w.plane.publish_names([(IRIS, "iris@2")])
            await w.until(lambda: len(w.events) >= 2)
            assert {type(event) for event in w.events} == {Abandoned, Fault}
            assert {event.model for event in w.events if isinstance(event, Fault)} == {"iris@2"}
            w.events.clear()
            w.plane.forget_names([IRIS])
            await w.event(Fault, model="")
            w.plane.publish([Route("iris@3", (Replica(10, 1),))])
            w.plane.publish_names([(IRIS, "iris@3")])
            assert (await asked)[:2] == (Code.OK, "iris@3")

    run(test())


def test_requests_beyond_the_slots_queue_and_that_is_told_as_long_as_they_do(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.route("iris@1", Replica(10, 1, max_concurrency=1))
            asked = [w.ask(execution_s=0.8)]
            await w.in_flight(10, 1)
            asked += [w.ask(execution_s=0.0), w.ask(execution_s=0.0)]
            told = await w.event(Queueing)
            assert (told.model, told.queued in (1, 2)) == ("iris@1", True)
            later = await w.event(Queueing, queued=2)
            later = await w.event(Queueing)
            assert later.oldest_ms >= 40
            assert w.plane.stats().in_flight == 3
            assert {answer.code for answer in await asyncio.gather(*asked)} == {Code.OK}
            w.events += w.plane.take_events()
            w.events.clear()
            await asyncio.sleep(0.12)
            assert not w.plane.take_events()

    run(test())


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_two_models_share_the_requests_for_a_name(world: Any, share: float) -> None:
    async def test() -> None:
        async with world() as w:
            w.plane.publish(
                [Route("iris@1", (Replica(10, 1),)), Route("iris@2", (Replica(20, 2), Replica(11, 1)))]
            )
            w.plane.publish_names([(IRIS, Split("iris@1", "iris@2", share))])
            answers = [await w.ask() for _ in range(200)]
            assert {answer.code for answer in answers} == {Code.OK}
            tried = [answer.model == "iris@2" for answer in answers]
            assert abs(sum(tried) - 200 * share) <= 2
            assert abs(sum(tried[:100]) - 100 * share) <= 2, "evenly spread"
            w.plane.publish_names([(IRIS, "iris@2")])
            assert (await w.ask()).model == "iris@2"

    run(test())


def test_who_queues_goes_to_a_replica_that_comes_and_parks_when_the_last_one_retires(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            first = Replica(10, 1, max_concurrency=1)
            w.route("iris@1", first)
            slow = w.ask(execution_s=1.0)
            await w.in_flight(10, 1)
            queued = w.ask(execution_s=0.0)
            await w.event(Queueing)
            w.plane.publish([Route("iris@1", (first, Replica(20, 2, max_concurrency=1)))])
            assert (await queued).code is Code.OK
            assert not slow.done()
            w.plane.publish([Route("iris@1", (first,))])
            again = w.ask(execution_s=0.0)
            await w.event(Queueing)
            w.plane.retire([(10, 5)], 30_000)
            await w.event(Fault, model="iris@1")
            await w.parked("iris@1", 1)
            assert (await slow).code is Code.OK
            await w.event(Retired, replica_id=10, clean=True)
            w.plane.publish([Route("iris@1", (first,))])
            assert (await again).code is Code.OK

    run(test())


def test_a_canary_without_a_copy_that_can_be_asked_is_not_waited_for(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.plane.publish_names([(IRIS, Split("iris@1", "iris@2", 1.0))])
            waiting = w.ask()
            await w.event(Fault, model="iris@1")
            w.plane.publish([Route("iris@1", (Replica(10, 1),))])
            assert (await waiting)[:2] == (Code.OK, "iris@1"), "it had no route"
            w.plane.publish([Route("iris@2", (Replica(20, 2),))])
            assert (await w.ask()).model == "iris@2"
            w.gone.add(20)
            assert (await w.ask())[:2] == (Code.OK, "iris@1"), "it is not there any more"
            assert (await w.event(NotHere)).replica_id == 20
            w.gone.clear()
            w.plane.publish([Route("iris@2", (Replica(21, 2),))])
            slow = w.ask(execution_s=0.3)
            await w.in_flight(21, 1)
            w.plane.set_targets([], [2])
            assert (await slow)[:2] == (Code.OK, "iris@1"), "its server died"
            assert (await w.ask())[:2] == (Code.OK, "iris@1")
            w.plane.publish([Route("iris@2", (Replica(12, 1),))])
            assert (await w.ask()).model == "iris@2"
            w.plane.retire([(12, 1)], 1000)
            await w.event(Retired)
            assert (await w.ask())[:2] == (Code.OK, "iris@1"), "it retires"
            assert not [event for event in w.events if isinstance(event, Fault)]

    run(test())


def test_requests_that_wait_for_the_model_of_a_split_move_with_its_name(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.plane.publish_names([(IRIS, "iris@1")])
            waiting = w.ask()
            await w.parked("iris@1", 1)
            w.plane.publish_names([(IRIS, Split("iris@1", "iris@2", 0.5))])
            await w.parked("iris@1", 1)
            w.plane.publish([Route("iris@3", (Replica(10, 1),))])
            w.plane.publish_names([(IRIS, Split("iris@3", "iris@2", 0.0))])
            assert (await waiting)[:2] == (Code.OK, "iris@3")
            w.plane.publish([Route("iris@3", ())])
            waiting = w.ask()
            await w.parked("iris@3", 1)
            w.plane.forget_names([IRIS])
            await w.event(Fault, model="")
            waiting.cancel()

    run(test())


def test_an_idle_replica_retires_at_once_and_publishing_revives_it(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.route("iris@1", Replica(10, 1))
            assert (await w.ask()).code == Code.OK
            w.plane.retire([(10, 5)], 10_000)
            assert await w.event(Retired) == Retired(10, 5, True)
            asked = w.ask()
            await w.event(Fault, model="iris@1")
            w.plane.publish([Route("iris@1", (Replica(10, 1),))])
            assert (await asked).code == Code.OK
            w.plane.retire([(999, 6)], 10_000)
            assert await w.event(Retired) == Retired(999, 6, True)

    run(test())


def test_a_retirement_waits_for_what_is_in_flight(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.route("iris@1", Replica(10, 1))
            asked = w.ask(execution_s=0.5)
            await w.in_flight(10, 1)
            w.plane.publish([Route("iris@1", ())])
            w.plane.retire([(10, 5)], 30_000)
            assert not w.plane.take_events()
            assert (await asked).code == Code.OK
            assert await w.event(Retired) == Retired(10, 5, True)

    run(test())


def test_a_retirement_that_takes_too_long_ends_unclean(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.route("iris@1", Replica(10, 1))
            asked = w.ask(execution_s=1.0)
            await w.in_flight(10, 1)
            w.plane.retire([(10, 5)], 50)
            assert await w.event(Retired) == Retired(10, 5, False)
            late = w.ask()
            await w.event(Fault, model="iris@1")
            w.plane.publish([Route("iris@1", (Replica(10, 1),))])
            assert (await late).code == Code.OK
            assert (await asked).code == Code.OK
            assert not w.plane.take_events()

    run(test())


def test_a_lost_target_costs_its_requests_only_time(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.route("iris@1", Replica(10, 1))
            asked = w.ask(execution_s=0.5)
            await w.in_flight(10, 1)
            w.plane.set_targets([], [1])
            fault = await w.event(Fault)
            assert (fault.name, fault.model, fault.waiting) == (IRIS, "iris@1", 1)
            w.plane.publish([Route("iris@1", (Replica(20, 2),))])
            await w.in_flight(20, 1)
            assert (await asked)[:2] == (Code.OK, "iris@1")

    run(test())


def test_a_request_that_loses_two_targets_is_given_up(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.route("iris@1", Replica(10, 1))
            asked = w.ask(execution_s=10.0)
            await w.in_flight(10, 1)
            w.plane.set_targets([], [1])
            await w.event(Fault)
            w.plane.publish([Route("iris@1", (Replica(20, 2),))])
            await w.in_flight(20, 1)
            w.plane.set_targets([], [2])
            assert (await asked).code == Code.UNAVAILABLE

    run(test())


def test_a_lost_target_is_told_and_skipped(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.route("iris@1", Replica(10, 1), Replica(20, 2))
            assert (await w.ask()).code == Code.OK
            await w.clients.lose(1)
            await w.event(TargetLost, target_id=1)
            assert {(await w.ask()).code for _ in range(8)} == {Code.OK}
            usage = {row.replica_id: row.requests for row in w.plane.take_usage()}
            assert usage.get(20, 0) >= 8

    run(test())


def test_a_replica_that_is_not_here_is_told_once_and_skipped_until_published(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.route("iris@1", Replica(10, 1))
            w.gone.add(10)
            asked = [w.ask() for _ in range(4)]
            assert await w.event(NotHere) == NotHere("iris@1", 10)
            await w.event(Fault, model="iris@1")
            await w.parked("iris@1", 4)
            assert not [event for event in w.events if isinstance(event, NotHere)]
            w.gone.clear()
            w.plane.publish([Route("iris@1", (Replica(11, 1),))])
            assert {answer.code for answer in await asyncio.gather(*asked)} == {Code.OK}

    run(test())


def test_usage_has_a_row_for_what_was_used_or_is_in_flight(world: Any) -> None:
    async def test() -> None:
        async with world() as w:
            w.route("iris@1", Replica(10, 1))
            w.route("idle", Replica(20, 2), name=Name(NameKind.MODEL_FIRST, "idle"))
            assert w.plane.take_usage() == []
            for _ in range(3):
                assert (await w.ask()).code == Code.OK
            (row,) = w.plane.take_usage()
            assert (row.model, row.replica_id, row.requests, row.errors, row.in_flight) == (
                "iris@1",
                10,
                3,
                0,
                0,
            )
            assert 0 <= row.last_used_ms_ago < TIMEOUT_S * 1000
            asked = w.ask(execution_s=0.5)
            await w.in_flight(10, 1)
            await w.in_flight(10, 1)
            assert (await asked).code == Code.OK
            await w.in_flight(10, 0)
            assert w.plane.take_usage() == []

    run(test())
