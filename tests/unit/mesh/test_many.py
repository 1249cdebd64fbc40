"""Several instances: who serves, who loads, what happens when one is not there."""

from __future__ import annotations

import asyncio

import pytest

from modelmesh.errors import Code, LoadFailed
from modelmesh.journal import Did
from modelmesh.policy.revisions import MOVING_S
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.theatre import Theatre


def test_a_model_loaded_elsewhere_is_served_from_there() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("iris")
            answers = [await theatre[id].ask("iris").answer for id in "abc"]
            assert [answer.code for answer in answers] == [Code.OK] * 3
            assert theatre.loads("iris") == 1
            theatre.check()

    run(scene())


@pytest.mark.parametrize("n", [2, 3, 6])
def test_instances_that_fault_at_once_make_one_copy(n: int) -> None:
    async def scene() -> None:
        async with Theatre(n) as theatre:
            for index in range(20):
                await theatre.register(f"m{index}", Artefact(load_s=0.05))
            calls = [theatre[id].ask(f"m{index}") for index in range(20) for id in theatre.ids]
            answers = await asyncio.gather(*(call.answer for call in calls))
            assert {answer.code for answer in answers} == {Code.OK}
            assert [theatre.loads(f"m{index}") for index in range(20)] == [1] * 20
            assert len({id for index in range(20) for id in theatre.holders(f"m{index}")}) > 1
            theatre.check()

    run(scene())


def test_a_copy_that_is_gone_is_denied_and_loaded_again() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await theatre.register("iris")
            await theatre["a"].ask("iris").answer
            (holder,) = theatre.holders("iris")
            other = "b" if holder == "a" else "a"
            await theatre[other].ask("iris").answer
            theatre[holder].runtime.forget("iris")
            assert (await theatre[other].ask("iris").answer).code is Code.OK
            theatre.check()

    run(scene())


def test_the_models_of_a_crashed_instance_answer_with_the_next_request() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("iris", Artefact(load_s=0.05))
            await theatre["a"].ask("iris").answer
            (holder,) = theatre.holders("iris")
            entry = next(id for id in theatre.ids if id != holder)
            await theatre[entry].ask("iris").answer
            await theatre.crash(holder)
            began_s = asyncio.get_running_loop().time()
            assert (await theatre[entry].ask("iris").answer).code is Code.OK
            assert asyncio.get_running_loop().time() - began_s < 1.0
            theatre.check()

    run(scene())


def test_requests_in_flight_at_an_instance_that_hangs_are_served_elsewhere() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("iris", Artefact(load_s=0.05))
            await theatre["a"].ask("iris").answer
            (holder,) = theatre.holders("iris")
            entry = next(id for id in theatre.ids if id != holder)
            await theatre[entry].ask("iris").answer
            theatre.network.freeze(holder)
            began_s = asyncio.get_running_loop().time()
            assert (await theatre[entry].ask("iris").answer).code is Code.OK
            assert asyncio.get_running_loop().time() - began_s < 2.5
            theatre.network.mend()
            await theatre.settled()
            theatre.check()

    run(scene())


def test_a_model_that_fails_is_tried_in_three_places_and_again_later() -> None:
    async def scene() -> None:
        async with Theatre(5) as theatre:
            artefact = await theatre.register("iris")
            artefact.error = LoadFailed("The storage is away.", code=Code.UNAVAILABLE)
            answer = await theatre["a"].ask("iris").answer
            assert answer.code is Code.UNAVAILABLE
            assert "The storage is away." in answer.message
            assert theatre.loads("iris") == 3
            again = await theatre["b"].ask("iris").answer
            assert again.code is Code.UNAVAILABLE
            artefact.error = None
            await asyncio.sleep(5.0)
            assert (await theatre["a"].ask("iris").answer).code is Code.OK
            theatre.check()

    run(scene())


def test_a_place_that_cannot_load_is_passed_over() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("iris", Artefact(load_s=0.05))
            for runtime in theatre["a"].runtimes + theatre["b"].runtimes:
                runtime._artefact_of = lambda spec: Artefact(
                    error=LoadFailed("Its disk is full.", code=Code.UNAVAILABLE)
                )
            assert (await theatre["a"].ask("iris").answer).code is Code.OK
            assert theatre.holders("iris") == ["c"]
            theatre.check()

    run(scene())


def test_an_instance_that_leaves_hands_its_models_over_first() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            models = [f"m{index}" for index in range(9)]
            for model in models:
                await theatre.register(model, Artefact(load_s=0.1))
                assert (await theatre["a"].ask(model).answer).code is Code.OK
            await theatre.settled()
            leaving = theatre.holders(models[0])[0]
            stays = next(id for id in theatre.ids if id != leaving)
            held = [model for model in models if leaving in theatre.holders(model)]
            await theatre.end(leaving, 10.0)
            for model in held:
                assert theatre.holders(model), f"{model} was not handed over"
            loads = sum(theatre.loads(model) for model in models)
            answers = [await theatre[stays].ask(model).answer for model in models]
            assert {answer.code for answer in answers} == {Code.OK}
            assert sum(theatre.loads(model) for model in models) == loads
            theatre.check()

    run(scene())


def test_an_instance_that_leaves_takes_requests_a_little_longer() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await theatre.register("iris")
            leaving = asyncio.create_task(theatre["a"].mesh.stop(10.0))
            await asyncio.sleep(1.5)
            assert not theatre["a"].mesh.instance().ready
            assert (await theatre["a"].ask("iris").answer).code is Code.OK
            await asyncio.sleep(1.0)
            assert (await theatre["a"].ask("iris").answer).code is Code.UNAVAILABLE
            await leaving

    run(scene())


def test_new_copies_go_to_the_newest_revision() -> None:
    async def scene() -> None:
        revisions = {"a": {"revision": "r1"}, "b": {"revision": "r1"}, "c": {"revision": "r2"}}
        async with Theatre(3, members=revisions) as theatre:
            models = [f"m{index}" for index in range(9)]
            for model in models:
                await theatre.register(model, Artefact(load_s=0.0))
                assert (await theatre["a"].ask(model).answer).code is Code.OK
            assert {tuple(theatre.holders(model)) for model in models} == {("c",)}
            await asyncio.sleep(MOVING_S)
            for index in range(9, 18):
                await theatre.register(f"m{index}", Artefact(load_s=0.0))
                assert (await theatre["a"].ask(f"m{index}").answer).code is Code.OK
            assert len({tuple(theatre.holders(f"m{index}")) for index in range(9, 18)}) == 3

    run(scene())


def test_one_instance_moves_a_vmodel_for_all() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=0.2))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await theatre["b"].ask("v").answer
            await theatre["c"].mesh.set_vmodel("v", "m2", sync=True)
            assert theatre["c"].mesh.vmodel("v").active == "m2"
            assert theatre.loads("m2") == 1
            switched = [stage for stage in theatre if stage.told(Did.SWITCHED, "v")]
            assert len(switched) == 1
            theatre.check()

    run(scene())


def test_a_vmodel_is_moved_by_another_when_its_keeper_dies() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=3.0))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await theatre["b"].ask("v").answer
            await theatre["a"].mesh.set_vmodel("v", "m2")
            await theatre.settled()
            (keeper,) = [id for id in theatre.ids if theatre[id].mesh.vmodel_calls.transitions.moving("v")]
            await theatre.crash(keeper)
            rest = next(iter(theatre))
            await theatre.until(lambda: rest.mesh.vmodel("v").active == "m2")
            theatre.check()

    run(scene())
