"""The replay against naive models, and its waiting by hand."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmesh.simulate.bound import Bounds
from modelmesh.simulate.engine import Replay
from modelmesh.simulate.outcome import Outcome, Rule, Setup, quantile
from modelmesh.simulate.synthetic import Synthetic, synthesise
from modelmesh.simulate.trace import Trace

SOME = st.lists(st.integers(0, 5), min_size=1, max_size=60)
SIZES = st.lists(st.integers(1, 40), min_size=6, max_size=6)


def trace_of(
    models: Sequence[int],
    sizes: Sequence[int] = (1,) * 6,
    loads_s: Sequence[float] = (0.0,) * 6,
    times_s: Sequence[float] | None = None,
    service_s: float = 0.0,
) -> Trace:
    """One request a second unless told otherwise."""
    return Trace(
        np.array(times_s if times_s is not None else range(len(models)), np.float64),
        np.array(models, np.int32),
        [f"m{number}" for number in range(len(sizes))],
        np.array(sizes, np.int64),
        np.array(loads_s, np.float64),
        np.full(len(sizes), service_s),
        named_sizes=len(sizes),
    )


def replayed(trace: Trace, memory: int, rule: Rule, **more: object) -> Outcome:
    return Replay(trace, replace(Setup(memory, rule, loads=1), **more)).run()  # type: ignore[arg-type]


def naive_lru(models: Sequence[int], sizes: Sequence[int], memory: int) -> int:
    cache, misses = OrderedDict[int, int](), 0
    for model in models:
        if sizes[model] > memory:
            continue
        misses += model not in cache
        cache.pop(model, None)
        while sum(cache.values()) + sizes[model] > memory:
            cache.popitem(last=False)
        cache[model] = sizes[model]
    return misses


def least_cost(models: tuple[int, ...], sizes: Sequence[int], costs: Sequence[float], memory: int) -> float:
    """By trying every choice of victims: the least that loads can cost."""

    @cache
    def least(step: int, there: frozenset[int]) -> float:
        if step == len(models):
            return 0.0
        model = models[step]
        if sizes[model] > memory:
            return least(step + 1, there)
        if model in there:
            return least(step + 1, there)
        options = [frozenset(kept) for kept in _subsets(sorted(there))]
        fitting = [kept for kept in options if sum(sizes[one] for one in kept) + sizes[model] <= memory]
        return costs[model] + min(least(step + 1, kept | {model}) for kept in fitting)

    return least(0, frozenset())


def _subsets(items: list[int]) -> list[list[int]]:
    if not items:
        return [[]]
    rest = _subsets(items[1:])
    return rest + [[items[0], *others] for others in rest]


@given(SOME, SIZES, st.integers(1, 120))
def test_lru_is_lru(models: list[int], sizes: list[int], memory: int) -> None:
    assert replayed(trace_of(models, sizes), memory, Rule.LRU).misses == naive_lru(models, sizes, memory)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(1, 4))
def test_the_optimum_of_equal_models_is_that_of_brute_force(models: list[int], memory: int) -> None:
    expected = least_cost(tuple(models), (1,) * 6, (1.0,) * 6, memory)
    assert replayed(trace_of(models), memory, Rule.OPTIMUM).misses == expected


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.integers(1, 25),
)
def test_nobody_beats_the_bound(models: list[int], sizes: list[int], costs: list[int], memory: int) -> None:
    trace = trace_of(models, sizes, [cost * 1e-6 for cost in costs])
    bound = Bounds(trace, trace.next_use()).at(memory)
    assert bound.misses <= least_cost(tuple(models), sizes, (1.0,) * 6, memory)
    least_s = least_cost(tuple(models), sizes, costs, memory) * 1e-6
    assert bound.load_s <= least_s + 1e-12
    assert least_s <= replayed(trace, memory, Rule.OPTIMUM).load_s + 1e-12


@given(SOME, SIZES, st.integers(1, 120), st.sampled_from(list(Rule)), st.integers(1, 3))
def test_every_request_is_counted_once(
    models: list[int], sizes: list[int], memory: int, rule: Rule, instances: int
) -> None:
    trace = trace_of(models, sizes, [0.3 * size for size in sizes], service_s=0.2)
    outcome = replayed(trace, memory, rule, instances=instances)
    too_large = sum(sizes[model] > memory // instances for model in models)
    fitting = {model for model in models if sizes[model] <= memory // instances}
    assert (
        outcome.warm + outcome.joined + outcome.misses + outcome.too_large == outcome.requests == len(models)
    )
    assert outcome.too_large == too_large and outcome.first_uses == len(fitting)
    assert outcome.misses >= outcome.first_uses
    assert outcome.wait_max_s >= outcome.wait_p99_s >= 0.0


@given(SOME, st.integers(1, 6))
def test_more_memory_never_makes_lru_miss_more(models: list[int], memory: int) -> None:
    less, more = (replayed(trace_of(models), size, Rule.LRU) for size in (memory, memory + 1))
    assert more.misses <= less.misses and more.warm_share >= less.warm_share


@given(SOME, SIZES, st.sampled_from(list(Rule)))
def test_room_for_all_loads_each_once(models: list[int], sizes: list[int], rule: Rule) -> None:
    trace = trace_of(models, sizes, [0.01] * 6)
    outcome = replayed(trace, sum(sizes), rule)
    assert outcome.misses == outcome.first_uses == len(set(models))
    bound = Bounds(trace, trace.next_use()).at(sum(sizes))
    assert (bound.misses, bound.load_s) == (outcome.misses, pytest.approx(outcome.load_s))


def test_rules_and_bound_are_in_their_order() -> None:
    trace = synthesise(Synthetic(models=200, requests=8_000, rate=20.0), seed=7)
    memory = trace.total_bytes // 4
    misses = {rule: replayed(trace, memory, rule, loads=4).load_s for rule in Rule}
    bound = Bounds(trace, trace.next_use()).at(memory)
    assert bound.load_s < misses[Rule.OPTIMUM] < misses[Rule.RATE_COST] < misses[Rule.LRU]


def test_waiting_by_hand() -> None:
    """One slot, loads of 2 s: the first is ready at 2, the second at 4; who comes meanwhile waits for the rest."""
    trace = trace_of([0, 1, 0, 1, 0], loads_s=[2.0] * 6, times_s=[0.0, 0.5, 1.0, 3.0, 9.0])
    outcome = replayed(trace, 2, Rule.LRU)
    assert (outcome.warm, outcome.joined, outcome.misses) == (1, 2, 2)
    assert outcome.wait_mean_s == pytest.approx((2.0 + 3.5 + 1.0 + 1.0) / 5)
    assert outcome.wait_max_s == outcome.wait_p99_s == pytest.approx(3.5)
    assert outcome.load_s == 4.0 and outcome.slots_busy == pytest.approx(4.0 / 9.0)
    two = replayed(trace, 2, Rule.LRU, loads=2)
    assert two.wait_mean_s == pytest.approx((2.0 + 2.0 + 1.0) / 5)


def test_the_more_wait_the_sooner_it_loads() -> None:
    trace = trace_of([0, 1, 2, 2], loads_s=[4.0] * 6, times_s=[0.0, 0.1, 0.2, 0.3])
    outcome = replayed(trace, 6, Rule.LRU)
    assert outcome.wait_max_s == pytest.approx(12.0 - 0.1), (
        "the second waits for the third, which two asked for"
    )


def test_what_is_loading_or_in_use_is_not_evicted() -> None:
    trace = trace_of([0, 1], loads_s=[2.0] * 6, times_s=[0.0, 1.0], service_s=3.0)
    for rule in Rule:
        outcome = replayed(trace, 1, rule, loads=2)
        rest_s = 6.0 if rule is Rule.RATE_COST else 3.0
        # Ready at 2, in use for 3 s (at least 3 load times under rate-cost, 5 s at most), then 2 s of loading.
        rest_s = min(rest_s, 5.0)
        assert outcome.wait_max_s == pytest.approx(2.0 + rest_s + 2.0 - 1.0), rule


def test_the_warm_up_does_not_count() -> None:
    models = [0, 1, 2, 3] * 4
    trace = trace_of(models, loads_s=[0.1] * 6)
    outcome = replayed(trace, 4, Rule.LRU, warmup=0.25)
    assert (outcome.requests, outcome.warm, outcome.misses, outcome.load_s) == (12, 12, 0, 0.0)
    assert Bounds(trace, trace.next_use(), 0.25).at(4) == (0, pytest.approx(0.0))


@pytest.mark.parametrize("instances", [1, 3])
def test_the_seed_decides(instances: int) -> None:
    trace = synthesise(Synthetic(models=1_000, requests=6_000, spread=0.3), seed=3)
    setup = Setup(trace.total_bytes // 2, instances=instances, seed=1)
    first, again = (Replay(trace, setup).run() for _ in range(2))
    other = Replay(trace, replace(setup, seed=2)).run()
    assert first == again
    assert replace(other, setup=setup) != first


def test_several_instances_hold_about_what_one_does() -> None:
    trace = synthesise(Synthetic(models=400, requests=10_000, spread=0.5, rate=50.0), seed=5)
    one, four = (
        replayed(trace, trace.total_bytes // 3, Rule.RATE_COST, instances=n, loads=4 // n) for n in (1, 4)
    )
    assert abs(one.warm_share - four.warm_share) < 0.05, (asdict(one), asdict(four))


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = synthesise(Synthetic(models=100, requests=3_000), seed=3)
    setup = Setup(trace.total_bytes // 5, rule=Rule.LRU)
    whole = Replay(trace, setup).run()
    monkeypatch.setattr("modelmesh.simulate.engine.CHUNK", 97)
    told: list[int] = []
    assert Replay(trace, setup).run(told.append) == whole
    assert sum(told) == 3_000 and len(told) == ceil(3_000 / 97)


@given(st.lists(st.floats(0.001, 10.0), max_size=40), st.integers(0, 60), st.floats(0.01, 0.99))
def test_quantiles_count_those_that_did_not_wait(waits: list[float], warm: int, q: float) -> None:
    everyone = sorted([0.0] * warm + waits)
    if everyone:
        expected = everyone[ceil(q * len(everyone)) - 1]
        assert quantile(np.array(waits), len(everyone), q) == expected


def test_a_trace_of_random_everything_does_not_break() -> None:
    rng = random.Random(4)
    for _ in range(20):
        sizes = [rng.randrange(1, 50) for _ in range(6)]
        times = sorted(rng.uniform(0, 20) for _ in range(200))
        trace = trace_of(
            [rng.randrange(6) for _ in times],
            sizes,
            [rng.uniform(0, 3) for _ in sizes],
            times,
            rng.uniform(0, 2),
        )
        for rule in Rule:
            outcome = replayed(
                trace, rng.randrange(50, 150), rule, instances=rng.randrange(1, 3), loads=rng.randrange(1, 3)
            )
            assert outcome.wait_max_s < 400.0
