"""More copies for models in demand and fewer again, among several instances in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Self

import pytest

from modelmesh.errors import Code
from modelmesh.journal import Did
from modelmesh.mesh.tuning import Tuning
from modelmesh.registry.keep import KeepChange
from modelmesh.testing.loop import run
from modelmesh.testing.requests import Answer
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.theatre import Theatre

SOON = Tuning(spare_s=5.0)


class Demand:
    """Requests for a model at a rate, from all instances in turn, as by many clients who do not wait for each other."""

    def __init__(
        self, theatre: Theatre, model: str, rate_per_s: float, execution_s: float, seed: int = 1
    ) -> None:
        self._theatre = theatre
        self._model = model
        self._rate_per_s = rate_per_s
        self._execution_s = execution_s
        self._rng = random.Random(seed)
        self._task: asyncio.Task[None] | None = None
        self.answers: list[Answer] = []
        self.codes: Counter[Code] = Counter()
        self.waits_s: list[tuple[float, float]] = []
        """(begun, how long it took)"""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._rng.expovariate(self._rate_per_s))
            stage = self._theatre[self._rng.choice(sorted(self._theatre.stages))]
            began_s, request = loop.time(), stage.ask(self._model, 20.0, self._execution_s)
            request.answer.add_done_callback(
                lambda answer, began_s=began_s: self._answered(answer, began_s, loop.time())
            )

    def _answered(self, answer: asyncio.Future[Answer], began_s: float, now_s: float) -> None:
        if not answer.cancelled():
            self.codes[answer.result().code] += 1
            self.waits_s.append((began_s, now_s - began_s))

    def wait_s(self, since_s: float) -> float:
        """The mean of what began since then took."""
        waits = [wait for began, wait in self.waits_s if began >= since_s]
        return sum(waits) / len(waits)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def scaled(theatre: Theatre, model: str) -> list[str]:
    """What the journals of all say of it, in order."""
    entries = [entry for stage in theatre for entry in stage.told(Did.SCALED, model)]
    return [entry.reason for entry in sorted(entries, key=lambda entry: entry.wall_s)]


@pytest.mark.parametrize("gate", [True, False], ids=["gate", "execution"])
def test_a_model_suddenly_in_demand_gets_a_second_copy_at_once_and_loses_it_later(gate: bool) -> None:
    async def scene() -> None:
        async with Theatre(3, tuning=SOON, serial=not gate, targets=1) as theatre:
            await theatre.register("m", Artefact(load_s=0.1, max_concurrency=1 if gate else 0))
            assert (await theatre["a"].ask("m").answer).code is Code.OK
            await asyncio.sleep(3.0)
            began_s = now_s()
            async with Demand(theatre, "m", 70.0, 0.020) as demand:
                await theatre.until(lambda: bool(scaled(theatre, "m")), 2.0)
                assert now_s() - began_s <= 0.2
                await theatre.until(lambda: len(theatre.holders("m")) >= 2, 1.0)
                assert now_s() - began_s <= 0.4
                await asyncio.sleep(10.0)
                copies, since_s = theatre.holders("m"), now_s()
                await asyncio.sleep(5.0)
                assert theatre.holders("m") == copies, "it neither grows on nor shrinks"
                served = {id: theatre[id].mesh.copy("m").history.requests_total for id in copies}  # type: ignore[union-attr]
                assert min(served.values()) > 0.25 * max(served.values()), served
                if gate:
                    assert demand.wait_s(since_s) < 0.04
            assert set(demand.codes) == {Code.OK}
            await theatre.until(lambda: len(theatre.holders("m")) == 1, 90.0)
            await asyncio.sleep(30.0)
            assert theatre.holders("m") != []
            assert theatre.loads("m") == len(copies)
            theatre.check()

    run(scene())


@pytest.mark.parametrize(("at_once", "copies"), [(12, 2), (6, 1)])
def test_what_is_asked_for_before_its_first_answer_is_not_waited_for(at_once: int, copies: int) -> None:
    async def scene() -> None:
        async with Theatre(2, serial=True, targets=1) as theatre:
            await theatre.register("m", min_copies=1)
            await theatre.until(lambda: len(theatre.holders("m")) == 1, 10.0)
            await asyncio.sleep(3.0)
            (holder,) = theatre.holders("m")
            asked = [theatre[holder].ask("m", 60.0, 0.9) for _ in range(at_once)]
            await asyncio.sleep(0.25)
            assert not any(request.answer.done() for request in asked)
            assert len(scaled(theatre, "m")) == 2 * (copies - 1), "wanted, and there"
            assert theatre.loads("m") == copies
            await asyncio.gather(*(request.answer for request in asked))
            theatre.check()

    run(scene())


def test_demand_that_one_copy_carries_makes_no_other() -> None:
    async def scene() -> None:
        async with Theatre(3, serial=True, targets=1) as theatre:
            await theatre.register("m")
            async with Demand(theatre, "m", 20.0, 0.020) as demand:
                await asyncio.sleep(20.0)
            assert theatre.loads("m") == 1
            assert set(demand.codes) == {Code.OK}
            theatre.check()

    run(scene())


def test_a_burst_that_passes_makes_no_other() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("m", Artefact(max_concurrency=1))
            await theatre["a"].ask("m").answer
            for _ in range(20):
                asked = [theatre["abc"[index % 3]].ask("m", execution_s=0.01) for index in range(16)]
                await asyncio.gather(*(request.answer for request in asked))
                await asyncio.sleep(3.0)
            assert theatre.loads("m") == 1
            theatre.check()

    run(scene())


@pytest.mark.parametrize(("maximum", "copies"), [(1, 1), (2, 2), (0, 4)])
def test_no_more_copies_than_are_allowed_or_there_are_instances(maximum: int, copies: int) -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("m", Artefact(max_concurrency=1), max_copies=maximum)
            async with Demand(theatre, "m", 60.0, 0.060):
                await asyncio.sleep(20.0)
                assert len(theatre.holders("m")) == copies
                assert theatre.loads("m") == copies
            theatre.check()

    run(scene())


def test_a_lower_maximum_takes_copies_away_at_once() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("m", Artefact(max_concurrency=1))
            async with Demand(theatre, "m", 60.0, 0.050) as demand:
                await theatre.until(lambda: len(theatre.holders("m")) == 4, 20.0)
                await theatre["a"].mesh.keep("m", KeepChange(max_copies=2))
                await theatre.until(lambda: len(theatre.holders("m")) == 2, 5.0)
                await asyncio.sleep(10.0)
                assert len(theatre.holders("m")) == 2
            assert set(demand.codes) <= {Code.OK, Code.DEADLINE_EXCEEDED}
            theatre.check()

    run(scene())


def test_holders_who_see_the_same_at_once_make_one_copy_of_it() -> None:
    async def scene() -> None:
        async with Theatre(6) as theatre:
            await theatre.register("m", Artefact(load_s=0.5, max_concurrency=4), min_copies=3)
            await theatre.until(lambda: len(theatre.holders("m")) == 3, 10.0)
            async with Demand(theatre, "m", 180.0, 0.050):
                await asyncio.sleep(1.0)
                assert theatre.loads("m") <= 5
                await asyncio.sleep(10.0)
            assert len([why for why in scaled(theatre, "m") if "are wanted" in why]) <= 6
            theatre.check()

    run(scene())


def test_its_own_servers_come_first() -> None:
    async def scene() -> None:
        async with Theatre(2, serial=True, targets=2, budget_bytes=10_000) as theatre:
            await theatre.register("m", Artefact(size_bytes=1_000))
            await theatre["a"].ask("m").answer
            (holder,) = theatre.holders("m")
            async with Demand(theatre, "m", 50.0, 0.020):
                await asyncio.sleep(3.0)
                assert not scaled(theatre, "m")
                theatre[holder].runtime.spread("m")
                await asyncio.sleep(10.0)
                assert theatre.loads("m") == 1
            theatre.check()

    run(scene())


def test_servers_that_could_but_do_not_are_not_waited_for_long() -> None:
    async def scene() -> None:
        async with Theatre(2, serial=True, targets=2) as theatre:
            await theatre.register("m")
            async with Demand(theatre, "m", 60.0, 0.050):
                await theatre.until(lambda: len(theatre.holders("m")) == 2, 8.0)
            theatre.check()

    run(scene())


def test_a_copy_that_costs_others_more_than_it_saves_is_not_made() -> None:
    async def scene() -> None:
        async with Theatre(2, budget_bytes=2_000) as theatre:
            precious = Artefact(size_bytes=1_000, load_s=9.0)
            for model in ("p0", "p1", "p2"):
                await theatre.register(model, precious, priority=100.0)
            await theatre.register("m", Artefact(size_bytes=1_000, max_concurrency=1), priority=0.01)
            models = ("p0", "p1", "p2", "m")
            await asyncio.gather(*(theatre["a"].mesh.load(model) for model in models))
            (holder,) = theatre.holders("m")

            async def use() -> None:
                while True:
                    for model in ("p0", "p1", "p2"):
                        theatre["b"].ask(model)
                    await asyncio.sleep(0.05)

            using = asyncio.create_task(use())
            await asyncio.sleep(5.0)
            async with Demand(theatre, "m", 55.0, 0.020):
                await asyncio.sleep(40.0)
            using.cancel()
            assert theatre.holders("m") == [holder]
            refusals = [why for why in scaled(theatre, "m") if "saves less waiting than it costs" in why]
            assert 2 <= len(refusals) <= 5, "it is asked less and less often"
            theatre.check()

    run(scene())


def test_the_second_copy_goes_to_an_instance_that_is_less_busy() -> None:
    async def scene() -> None:
        async with Theatre(3, serial=True, targets=1) as theatre:
            for model in ("busy", "m"):
                await theatre.register(model, max_copies=1 if model == "busy" else 0)
            await theatre["a"].ask("busy").answer
            await theatre["a"].ask("m").answer
            (busy,) = theatre.holders("busy")
            if theatre.holders("m") == [busy]:
                await theatre["a"].mesh.unload("m")
                await theatre["a"].mesh._others.load_at(  # type: ignore[union-attr]
                    next(id for id in "abc" if id != busy),
                    theatre["a"].mesh._others._ask("m", 5.0, 1, ""),  # type: ignore[union-attr,arg-type]
                )
            async with Demand(theatre, "busy", 35.0, 0.020):
                await asyncio.sleep(5.0)
                async with Demand(theatre, "m", 60.0, 0.020, seed=2):
                    await theatre.until(lambda: len(theatre.holders("m")) == 2, 10.0)
                    assert busy not in theatre.holders("m")
            theatre.check()

    run(scene())


def test_the_only_copy_of_a_model_that_is_slow_to_load_gets_a_second_where_memory_is_free() -> None:
    async def scene() -> None:
        async with Theatre(2, budget_bytes=5_000) as theatre:
            await theatre.register("slow", Artefact(size_bytes=1_000, load_s=5.0))
            await theatre.register("quick", Artefact(size_bytes=1_000, load_s=0.05))
            for _ in range(30):
                for model in ("slow", "quick"):
                    assert (await theatre["a"].ask(model).answer).code is Code.OK
                await asyncio.sleep(1.0)
            assert len(theatre.holders("slow")) == 2
            assert len(theatre.holders("quick")) == 1
            spare = next(id for id in "ab" if theatre[id].mesh.copy("slow").spare)  # type: ignore[union-attr]
            models = [f"m{index}" for index in range(8)]
            for model in models:
                await theatre.register(model, Artefact(size_bytes=1_000))
            for _ in range(4):
                for model in [*models, "slow"]:
                    assert (await theatre["a"].ask(model).answer).code is Code.OK
                    await asyncio.sleep(0.1)
            assert theatre.holders("slow") == [id for id in "ab" if id != spare], "a spare copy goes first"
            theatre.check()

    run(scene())


def test_a_second_copy_of_what_is_used_no_more_goes() -> None:
    async def scene() -> None:
        async with Theatre(2, tuning=SOON) as theatre:
            await theatre.register("slow", Artefact(load_s=5.0))
            for _ in range(30):
                await theatre["a"].ask("slow").answer
                await asyncio.sleep(1.0)
            assert len(theatre.holders("slow")) == 2
            await asyncio.sleep(3_000.0)
            assert len(theatre.holders("slow")) == 2
            await asyncio.sleep(1_000.0)
            assert len(theatre.holders("slow")) == 1
            theatre.check()

    run(scene())


def test_pinned_and_kept_copies_stay_when_demand_goes() -> None:
    async def scene() -> None:
        async with Theatre(4, tuning=SOON) as theatre:
            await theatre.register("kept", Artefact(max_concurrency=1), min_copies=2)
            await theatre.register("pinned", Artefact(max_concurrency=1), pin=True)
            async with Demand(theatre, "kept", 56.0, 0.050), Demand(theatre, "pinned", 56.0, 0.050, seed=2):
                await theatre.until(lambda: len(theatre.holders("kept")) >= 3, 20.0)
                await theatre.until(lambda: len(theatre.holders("pinned")) >= 3, 20.0)
            await asyncio.sleep(1.0)
            pinned = len(theatre.holders("pinned"))
            await asyncio.sleep(100.0)
            assert len(theatre.holders("kept")) == 2
            assert len(theatre.holders("pinned")) == pinned
            theatre.check()

    run(scene())


@pytest.mark.parametrize("seed", range(6))
def test_demand_that_comes_and_goes_never_leaves_a_model_without_a_copy(seed: int) -> None:
    async def scene() -> None:
        rng = random.Random(seed)
        async with Theatre(4, seed=seed, tuning=SOON) as theatre:
            await theatre.register("m", Artefact(load_s=rng.choice((0.05, 0.5)), max_concurrency=2))
            await theatre["a"].ask("m").answer
            least = 4
            loads = 0
            for _ in range(6):
                async with Demand(theatre, "m", rng.choice((5.0, 60.0, 140.0)), 0.050, seed=seed) as demand:
                    for _ in range(40):
                        await asyncio.sleep(0.5)
                        least = min(least, len(theatre.holders("m")))
                assert set(demand.codes) <= {Code.OK, Code.DEADLINE_EXCEEDED}
                await asyncio.sleep(rng.choice((1.0, 30.0)))
                least = min(least, len(theatre.holders("m")))
            loads = theatre.loads("m")
            print(f"seed {seed}: {loads} loads")
            assert least >= 1
            assert loads <= 6 * 4
            theatre.check()

    run(scene())
