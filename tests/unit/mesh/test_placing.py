"""Where copies are loaded among several instances, by what these tell of themselves."""

from __future__ import annotations

import asyncio
from collections import Counter
from math import inf

import pytest

from modelmesh.errors import Code
from modelmesh.peers.protocol import Ask
from modelmesh.policy.runtimes import Constraint
from modelmesh.policy.urgency import Why
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage
from modelmesh.testing.theatre import Theatre


def keeps(stage: Stage, model: str) -> bool:
    others = stage.mesh._others
    assert others is not None
    return others.provider.keeps(model)


def test_a_keeper_does_not_count_for_ever_what_it_placed_at_itself() -> None:
    async def scene() -> None:
        async with Theatre(2, max_loads=1) as theatre:
            models = [f"m{index}" for index in range(20)]
            at_home = 0
            for model in models:
                await theatre.register(model, Artefact(load_s=0.2))
            for turn in range(4):
                for model in models:
                    assert (await theatre["a"].ask(model).answer).code is Code.OK
                    if turn == 3:
                        at_home += keeps(theatre[theatre.holders(model)[0]], model)
                    await theatre["a"].mesh.unload(model)
                await asyncio.sleep(5.0)
            assert at_home >= 15

    run(scene())


def test_nothing_is_placed_behind_a_load_that_takes_longer_than_expected() -> None:
    """A worker that was started again imports a framework first, while others have it."""

    async def scene() -> None:
        async with Theatre(2, max_loads=1) as theatre:
            await theatre.register("first", Artefact(load_s=5.0))
            slow = asyncio.create_task(theatre["a"].mesh._asks.load("first", "a test", False, 10.0))
            await asyncio.sleep(2.0)
            for index in range(10):
                await theatre.register(f"m{index}", Artefact(load_s=0.01))
                asked_s = theatre["a"].clock.monotonic_s()
                assert (await theatre["ab"[index % 2]].ask(f"m{index}").answer).code is Code.OK
                assert theatre["a"].clock.monotonic_s() < asked_s + 0.1
                assert theatre.holders(f"m{index}") == ["b"]
            await slow

    run(scene())


def test_requests_for_a_copy_whose_server_died_are_served_where_it_is_quickest() -> None:
    async def scene() -> None:
        async with Theatre(2, max_loads=1, targets=1) as theatre:
            a, b = theatre["a"], theatre["b"]
            await theatre.register("iris", Artefact(load_s=0.01))
            await a.mesh._asks.load("iris", "a test", False, 5.0)
            assert (await a.ask("iris").answer).code is Code.OK
            await theatre.register("slow", Artefact(load_s=5.0))
            slow = asyncio.create_task(a.mesh._asks.load("slow", "a test", False, 10.0))
            await theatre.settled()
            (target,) = a.runtime.targets
            a.dataplane.lose_target(target)
            asked_s = a.clock.monotonic_s()
            waiting = a.ask("iris")
            await asyncio.sleep(0.01)
            a.runtime.crash_target(target)
            assert (await waiting.answer).code is Code.OK
            assert a.clock.monotonic_s() < asked_s + 1.0
            assert theatre.holders("iris") == ["b"] and b.runtime.loads == ["iris"]
            await slow

    run(scene())


def test_who_joins_prepares_for_what_others_have_in_use_before_anything_is_placed_there() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            for index in range(10):
                await theatre.register(f"m{index}")
                assert (await theatre["a"].ask(f"m{index}").answer).code is Code.OK
            await theatre.end("c")
            await theatre.settled()
            starting = asyncio.create_task(theatre.begin("c", prepare_s=3.0))
            await asyncio.sleep(2.0)
            for index in range(10, 20):
                await theatre.register(f"m{index}")
                asked_s = theatre["a"].clock.monotonic_s()
                assert (await theatre["a"].ask(f"m{index}").answer).code is Code.OK
                assert theatre["a"].clock.monotonic_s() < asked_s + 0.1
            assert not starting.done()
            joined = await starting
            assert joined.runtime.prepared == {"fake"} and not joined.runtime.loads
            await theatre.settled()
            for index in range(20, 40):
                await theatre.register(f"m{index}")
                assert (await theatre["a"].ask(f"m{index}").answer).code is Code.OK
            assert joined.runtime.loads

    run(scene())


def test_the_first_of_all_has_nothing_to_prepare() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            assert not any(stage.runtime.prepared for stage in theatre)
            await theatre.register("iris")
            assert (await theatre["a"].ask("iris").answer).code is Code.OK

    run(scene())


def test_what_was_used_elsewhere_is_known_where_it_comes_back() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("iris", Artefact(load_s=0.1))
            before = next(stage for stage in theatre if not keeps(stage, "iris"))
            await before.mesh._asks.load("iris", "a test", False, 5.0)
            for _ in range(10):
                assert (await before.ask("iris").answer).code is Code.OK
                await asyncio.sleep(1.0)
            await before.mesh.unload("iris")
            await asyncio.sleep(1.0)
            entry = next(stage for stage in theatre if stage is not before and not keeps(stage, "iris"))
            assert (await entry.ask("iris").answer).code is Code.OK
            (after,) = theatre.holders("iris")
            assert theatre[after] is not before
            copy = theatre[after].mesh.copy("iris")
            assert copy is not None
            assert copy.history.count == 2

    run(scene())


CONSTRAINTS = {
    "gpu": Constraint(required=frozenset({"gpu"})),
    "fast": Constraint(preferred=frozenset({"fast"})),
    "_default": Constraint(required=frozenset({"plain"})),
}
MEMBERS = {
    "a": {"labels": frozenset({"gpu", "fast"})},
    "b": {"labels": frozenset({"plain", "fast"})},
    "c": {"labels": frozenset({"plain"})},
}


@pytest.mark.parametrize(
    ("model_type", "allowed"), [("gpu", {"a"}), ("other", {"b", "c"}), ("fast", {"a", "b"})]
)
def test_types_go_where_the_labels_of_instances_allow(model_type: str, allowed: set[str]) -> None:
    async def scene() -> None:
        async with Theatre(3, members=MEMBERS, constraints=CONSTRAINTS) as theatre:
            holders: set[str] = set()
            for index in range(12):
                await theatre.register(f"m{index}", type=model_type)
                assert (await theatre["c"].ask(f"m{index}").answer).code is Code.OK
                holders.update(theatre.holders(f"m{index}"))
            assert holders == allowed

    run(scene())


def test_a_type_that_no_instance_may_serve_is_refused_with_the_labels_that_lack() -> None:
    async def scene() -> None:
        constraints = {"gpu": Constraint(required=frozenset({"gpu"}))}
        async with Theatre(2, constraints=constraints) as theatre:
            await theatre.register("iris", type="gpu")
            answer = await theatre["a"].ask("iris").answer
            assert answer.code is Code.FAILED_PRECONDITION
            assert "lacks the label gpu" in answer.message

    run(scene())


def test_new_copies_avoid_old_revisions_while_the_deployment_moves() -> None:
    async def scene() -> None:
        members = {"a": {"revision": "old"}, "b": {"revision": "new"}}
        async with Theatre(2, members=members) as theatre:
            holders: Counter[str] = Counter()
            for index in range(10):
                await theatre.register(f"m{index}")
                await theatre["a"].ask(f"m{index}").answer
                holders.update(theatre.holders(f"m{index}"))
            assert holders == {"b": 10}
            await asyncio.sleep(900.0)
            for index in range(10, 30):
                await theatre.register(f"m{index}")
                await theatre["a"].ask(f"m{index}").answer
                holders.update(theatre.holders(f"m{index}"))
            assert holders["a"] >= 5

    run(scene())


def test_an_instance_that_may_evict_nothing_says_so_by_its_price() -> None:
    async def scene() -> None:
        async with Theatre(2, budget_bytes=2_000) as theatre:
            await theatre.register("pinned", Artefact(size_bytes=1_990))
            await theatre["a"].mesh.ensure_loaded("pinned", why="a test")
            (holder,) = theatre.holders("pinned")
            theatre[holder].mesh.hold("pinned", "a test")
            await theatre.settled()
            others = theatre[holder].mesh._others
            assert others is not None and others.load_now().price == inf
            await theatre.register("iris", Artefact(size_bytes=500))
            assert (await theatre[holder].ask("iris").answer).code is Code.OK
            assert theatre.holders("iris") != [holder]

    run(scene())


def test_a_guess_is_placed_only_where_memory_is_free() -> None:
    async def scene() -> None:
        async with Theatre(2, budget_bytes=2_000) as theatre:
            for model in ("one", "two", "three"):
                await theatre.register(model, Artefact(size_bytes=1_500))
            for model in ("one", "two"):
                assert (await theatre["a"].ask(model).answer).code is Code.OK
            await theatre.settled()
            others = theatre["a"].mesh._others
            assert others is not None
            record = theatre["a"].mirror.model("three")
            assert record is not None
            ask = Ask("three", 5.0, Why.PREWARM, "a test")
            assert others.provider.places.choose(ask, record, ()) is None
            await theatre["a"].mesh.unload("one")
            await theatre.settled()
            assert others.provider.places.choose(ask, record, ()) is not None

    run(scene())
