"""The whole mesh as each instance shows it, and what it may be told to do."""

from __future__ import annotations

import asyncio

import pytest

from modelmesh.errors import Code, FailedPrecondition, InstanceNotFound, InvalidInput, LoadFailed
from modelmesh.journal import Did
from modelmesh.mesh.control import Page, Query, Sort
from modelmesh.mesh.recollection import DEADLINE_S
from modelmesh.mesh.views import MemberView, MeshCount, State
from modelmesh.peers.protocol import Order
from modelmesh.policy.runtimes import Constraint
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage, raised
from modelmesh.testing.theatre import Theatre


def ids(page: Page) -> list[str]:
    return [view.id for view in page.models]


async def everywhere(theatre: Theatre, query: Query) -> Page:
    """The same from all instances."""
    pages = [await stage.mesh.models(query) for stage in theatre]
    assert all(ids(page) == ids(pages[0]) and page.total == pages[0].total for page in pages)
    return pages[0]


async def loaded_somewhere(theatre: Theatre, n: int) -> None:
    """Models m0, m1, … with sizes and rates of their own, loaded wherever; the last stays cold."""
    for index in range(n):
        await theatre.register(f"m{index}", Artefact(size_bytes=1000 + index))
    for index in range(n - 1):
        for _ in range(index + 2):
            assert (await theatre["a"].ask(f"m{index}").answer).code is Code.OK
            await asyncio.sleep(0.5 / (index + 1))
    await asyncio.sleep(3.0)


def test_lists_are_the_same_from_everywhere() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await loaded_somewhere(theatre, 7)
            assert ids(await everywhere(theatre, Query(prefix="m", limit=2))) == ["m0", "m1"]
            loaded = await everywhere(theatre, Query(state=State.LOADED, limit=4))
            assert (ids(loaded), loaded.total, loaded.next_after) == (["m0", "m1", "m2", "m3"], 6, "m3")
            rest = await everywhere(theatre, Query(state=State.LOADED, after="m3", limit=4))
            assert (ids(rest), rest.next_after) == (["m4", "m5"], "")
            cold = await everywhere(theatre, Query(state=State.COLD))
            assert (ids(cold), cold.total) == (["m6"], 1)
            held = [await everywhere(theatre, Query(instance=id, state=State.LOADED)) for id in "abc"]
            assert len(theatre.holders("m0")) == 1
            assert sorted(model for page in held for model in ids(page)) == [
                f"m{index}" for index in range(6)
            ]
            for id, page in zip("abc", held, strict=True):
                assert all(id in theatre.holders(model) for model in ids(page))
            view = theatre["a"].mesh.model("m3")
            assert [(copy.instance, copy.state) for copy in view.copies] == [
                (id, State.LOADED) for id in theatre.holders("m3")
            ]
            assert (view.size_bytes, view.copies[0].size_bytes, view.size_measured) == (1003, 1003, True)
            theatre.check()

    run(scene())


def test_lists_by_a_number_have_the_highest_first_on_all_pages() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await loaded_somewhere(theatre, 7)
            assert ids(await everywhere(theatre, Query(sort=Sort.SIZE, limit=3))) == ["m5", "m4", "m3"]
            assert ids(await everywhere(theatre, Query(sort=Sort.USED))) == [
                f"m{index}" for index in range(5, -1, -1)
            ]
            first = await everywhere(theatre, Query(sort=Sort.SIZE, prefix="m", limit=4))
            assert first.total == 6
            second = await everywhere(theatre, Query(sort=Sort.SIZE, after=first.next_after, limit=4))
            assert (ids(second), second.next_after) == (["m1", "m0"], "")
            by_rate = await everywhere(theatre, Query(sort=Sort.RATE))
            rates = [view.requests_per_s for view in by_rate.models]
            assert rates == sorted(rates, reverse=True) and rates[0] > 0.0
            assert ids(await everywhere(theatre, Query(sort=Sort.COPIES, limit=2))) == ["m0", "m1"]
            for query in (
                Query(sort=Sort.RATE, after="nonsense"),
                Query(sort=Sort.RATE, state=State.COLD),
                Query(instance="a", state=State.COLD),
            ):
                assert isinstance(await raised(theatre["a"].mesh.models(query)), InvalidInput)
            nobody = await raised(theatre["a"].mesh.models(Query(instance="nobody")))
            assert isinstance(nobody, InstanceNotFound)

    run(scene())


def test_a_rate_that_was_told_fades_while_the_copy_is_idle() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await theatre.register("iris")
            for _ in range(20):
                await theatre["a"].ask("iris").answer
                await asyncio.sleep(0.1)
            await asyncio.sleep(2.0)
            (holder,) = theatre.holders("iris")
            (other,) = {"a", "b"} - {holder}
            before = theatre[other].mesh.model("iris")
            await asyncio.sleep(100.0)
            after = theatre[other].mesh.model("iris")
            assert after.requests_per_s == pytest.approx(
                theatre[holder].mesh.model("iris").requests_per_s, rel=0.1
            )
            assert before.requests_per_s > 10 * after.requests_per_s
            assert after.last_used_wall_s == pytest.approx(before.last_used_wall_s, abs=1.0)

    run(scene())


def test_a_model_that_failed_elsewhere_is_shown_with_the_reason_and_still_tried() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            artefact = await theatre.register(
                "bad", Artefact(error=LoadFailed("It is no model.", code=Code.INVALID_ARGUMENT))
            )
            assert (await theatre["a"].ask("bad").answer).code is Code.INVALID_ARGUMENT
            await asyncio.sleep(1.0)
            failed = await everywhere(theatre, Query(state=State.FAILED))
            assert ids(failed) == ["bad"]
            views = [stage.mesh.model("bad") for stage in theatre]
            assert all(
                view.failure is not None and view.failure.reason == "It is no model." for view in views
            )
            assert all(
                len(view.copies) == 3 and {c.state for c in view.copies} == {State.FAILED} for view in views
            )
            assert not any(stage.mesh.servable("bad") for stage in theatre)
            spared = next(id for id in "abcd" if id not in {copy.instance for copy in views[0].copies})
            await theatre.crash(next(copy.instance for copy in views[0].copies))
            await asyncio.sleep(12.0)
            assert theatre[spared].mesh.model("bad").state is State.FAILED
            assert theatre[spared].mesh.servable("bad")  # two failures keep no third instance from trying
            artefact.error = None
            assert (await theatre[spared].ask("bad").answer).code is Code.OK
            assert ids(await everywhere(theatre, Query(state=State.FAILED))) == []

    run(scene())


def members(stage: Stage) -> dict[str, MemberView]:
    return {view.id: view for view in stage.mesh.members()}


def test_each_instance_shows_all_and_one_tells_of_the_mesh() -> None:
    async def scene() -> None:
        async with Theatre(3, members={"b": {"zone": "z2", "revision": "r7"}}) as theatre:
            await loaded_somewhere(theatre, 4)
            for id, stage in theatre.stages.items():
                shown = members(stage)
                assert list(shown) == ["a", "b", "c"]
                assert [view.id for view in shown.values() if view.here] == [id]
                assert (shown["b"].zone, shown["b"].revision) == ("z2", "r7")
                for other in theatre:
                    own, told = members(other)[other.mesh.instance().id], shown[other.mesh.instance().id]
                    assert (told.copies, told.loads_total, told.free_bytes) == (
                        own.copies, own.loads_total, own.free_bytes,
                    )  # fmt: skip
                assert sum(view.copies for view in shown.values()) == 3
            censuses = [await stage.mesh.census() for stage in theatre]
            assert censuses == [MeshCount(4, 3, 0, 0, 3), None, None]
            theatre.network.freeze("a")
            await asyncio.sleep(2.0)
            assert members(theatre["b"])["a"].suspected
            assert [await theatre[id].mesh.census() is not None for id in "bc"] == [True, False]

    run(scene())


def test_an_instance_alone_is_a_mesh_of_one() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("iris")
            await stage.ask("iris").answer
            (view,) = stage.mesh.members()
            assert (view.id, view.here, view.copies, view.loads_total) == ("local", True, 1, 1)
            assert await stage.mesh.census() == MeshCount(1, 1, 0, 0, 1)
            story = await stage.mesh.story(["iris"])
            assert [told.entry.did for told in story.entries][-1] == Did.LOADED
            refused = await raised(stage.mesh.order("local", Order.CORDON))
            assert isinstance(refused, FailedPrecondition)
            assert isinstance(await raised(stage.mesh.order("b", Order.CORDON)), InstanceNotFound)

    run(scene())


def test_nothing_is_placed_in_a_cordoned_instance_and_its_copies_serve() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await loaded_somewhere(theatre, 13)
            held = ids(await theatre["a"].mesh.models(Query(instance="b", state=State.LOADED)))
            assert held
            await theatre["a"].mesh.order("b", Order.CORDON)
            await theatre["a"].mesh.order("b", Order.CORDON)
            await asyncio.sleep(0.5)
            assert all(members(stage)["b"].cordoned for stage in theatre)
            assert len(theatre["b"].told(Did.CORDONED)) == 1
            before = members(theatre["b"])["b"].loads_total
            for index in range(30):
                await theatre.register(f"n{index}")
                asked = theatre["abc"[index % 3]].ask(f"n{index}")
                assert (await asked.answer).code is Code.OK
            assert members(theatre["b"])["b"].loads_total == before
            for model in held:
                assert (await theatre["c"].ask(model).answer).code is Code.OK
                assert theatre.holders(model) == ["b"]
            await theatre["c"].mesh.order("b", Order.UNCORDON)
            await asyncio.sleep(0.5)
            for index in range(30):
                await theatre.register(f"o{index}")
                await theatre["a"].ask(f"o{index}").answer
            assert members(theatre["b"])["b"].loads_total > before
            assert len(theatre["b"].told(Did.UNCORDONED)) == 1
            theatre.check()

    run(scene())


def test_when_all_are_cordoned_requests_are_told_so_and_a_last_one_loads_again() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await theatre.register("iris")
            for id in "ab":
                await theatre["a"].mesh.order(id, Order.CORDON)
            await asyncio.sleep(1.5)
            answer = await theatre["a"].ask("iris", 5.0).answer
            assert answer.code is Code.RESOURCE_EXHAUSTED
            assert (
                "a is cordoned; b is cordoned" in answer.message
                or "b is cordoned; a is cordoned" in answer.message
            )
            await theatre.crash("b")
            await asyncio.sleep(12.0)
            assert (await theatre["a"].ask("iris", 5.0).answer).code is Code.OK

    run(scene())


def test_draining_is_begun_by_way_of_another_instance() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await loaded_somewhere(theatre, 6)
            assert members(theatre["a"])["b"].copies > 0
            draining: list[asyncio.Task[None]] = []
            orders = theatre["b"].mesh.overview.orders
            orders.on_drain = lambda: draining.append(asyncio.create_task(theatre["b"].mesh.drain(5.0)))
            await theatre["a"].mesh.order("b", Order.DRAIN)
            await asyncio.gather(*draining)
            await theatre["a"].mesh.order("b", Order.DRAIN)
            assert len(draining) == 1
            await asyncio.sleep(1.5)
            told = members(theatre["a"])["b"]
            assert (told.draining, told.copies) == (True, 0)
            assert len(theatre["b"].told(Did.DRAINING)) == 1

    run(scene())


def test_an_order_that_cannot_be_passed_on_says_so() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            theatre.network.freeze("b")
            error = await raised(theatre["a"].mesh.order("b", Order.CORDON))
            assert error is not None and "b does not answer" in str(error)

    run(scene())


def test_the_story_of_a_model_is_told_by_all_and_who_is_silent_is_named() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("iris")
            await theatre["c"].ask("iris").answer
            (holder,) = theatre.holders("iris")
            await theatre["a"].mesh.unload("iris")
            story = await theatre["b"].mesh.story(["iris"])
            assert not story.mute and not story.cut
            told = [(happened.instance, happened.entry.did) for happened in story.entries]
            assert ("a", "registered") in told and (holder, "loaded") in told and (holder, "unloaded") in told
            times = [happened.entry.wall_s for happened in story.entries]
            assert times == sorted(times)
            loaded = next(happened.entry for happened in story.entries if happened.entry.did == "loaded")
            assert loaded.numbers["size_bytes"] == 1000
            silent = next(id for id in "abc" if id != holder)
            asker = next(id for id in "abc" if id not in (holder, silent))
            theatre.network.freeze(silent)
            began_s = asyncio.get_running_loop().time()
            story = await theatre[asker].mesh.story(["iris"])
            assert asyncio.get_running_loop().time() - began_s <= DEADLINE_S + 0.1
            assert [mute.instance for mute in story.mute] == [silent]
            assert (holder, "loaded") in [
                (happened.instance, happened.entry.did) for happened in story.entries
            ]

    run(scene())


def test_stories_are_bounded() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            for stage in theatre:
                for index in range(700):
                    stage.journal.record(Did.WARNED, "iris", str(index))
                    await asyncio.sleep(0.001)
            story = await theatre["a"].mesh.story(["iris"])
            assert story.cut and len(story.entries) == 500
            assert story.entries[-1].entry.reason == "699"

    run(scene())


def test_constraints_that_were_none_at_the_start_count_once_there_are_some() -> None:
    async def scene() -> None:
        constraints: dict[str, Constraint] = {}
        async with Stage(constraints=constraints) as stage:
            await stage.register("before")
            assert (await stage.ask("before").answer).code is Code.OK
            constraints["fake"] = Constraint(required=frozenset({"gpu"}))
            await stage.register("after")
            assert (await stage.ask("after").answer).code is Code.FAILED_PRECONDITION
            assert (await stage.ask("before").answer).code is Code.OK

    run(scene())
