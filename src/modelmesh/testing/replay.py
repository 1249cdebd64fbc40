"""Replaying a trace of uses against eviction policies at one memory size: load-seconds, misses, and the ratio to LRU.

No loop, no data plane: the policies' own caches, one use at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from modelmesh.policy.eviction import Policy
from modelmesh.policy.rates import Uses
from modelmesh.policy.shadow import LruCache, RateCostCache, Shadow


class Use(NamedTuple):
    """One use of a model at a time (seconds from the beginning)."""

    at_s: float
    model: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model weighs and how long it loads."""

    size_bytes: int
    load_s: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a policy spent on a trace. `lru_share` is the share of uses in which LRU decided."""

    uses: int
    misses: int
    load_s: float
    lru_share: float = 0.0


def replay_lru(trace: Iterable[Use], costs: dict[str, Cost], capacity_bytes: int) -> Replayed:
    """Least recently used."""
    cache = LruCache(capacity_bytes)
    uses = misses = 0
    load_s = 0.0
    for use in trace:
        uses += 1
        cost = costs[use.model]
        if not cache.access(use.model, cost.size_bytes):
            misses += 1
            load_s += cost.load_s
    return Replayed(uses, misses, load_s)


def replay_rate_cost(
    trace: Iterable[Use],
    costs: dict[str, Cost],
    capacity_bytes: int,
    rng: random.Random,
    *,
    shadow: bool = True,
) -> Replayed:
    """Rate-cost, with the shadow LRU that may take over."""
    cache = RateCostCache(capacity_bytes, rng)
    judge = Shadow(rng)
    judge.resize(capacity_bytes, len(costs))
    uses_of: dict[str, Uses] = {}
    uses = misses = lru_uses = 0
    load_s = 0.0
    for use in trace:
        uses += 1
        cost = costs[use.model]
        known = uses_of.setdefault(use.model, Uses())
        known.record(use.at_s)
        if shadow:
            judge.used(use.model, cost.size_bytes, cost.load_s, known, use.at_s)
            cache.policy = judge.policy
            lru_uses += judge.policy is Policy.LRU
        if not cache.access(use.model, cost.size_bytes, cost.load_s, known, use.at_s):
            misses += 1
            load_s += cost.load_s
    return Replayed(uses, misses, load_s, lru_uses / max(uses, 1))


def compare(
    trace: Callable[[random.Random], Iterable[Use]], costs: dict[str, Cost], capacity_bytes: int, seed: int
) -> tuple[Replayed, Replayed, float]:
    """(rate-cost, LRU, ratio of their load-seconds); the trace is made twice from the same seed. A ratio below 1 is a
    gain; it is 1 when LRU loads nothing."""
    mine = replay_rate_cost(trace(random.Random(seed)), costs, capacity_bytes, random.Random(seed + 1))
    theirs = replay_lru(trace(random.Random(seed)), costs, capacity_bytes)
    return mine, theirs, mine.load_s / theirs.load_s if theirs.load_s else 1.0


# --- synthetic material ---------------------------------------------------------------------------------------------


def unequal_costs(models: int, rng: random.Random, load_bytes_per_s: float = 100e6) -> dict[str, Cost]:
    """Log-normal sizes around 10 MB; loading takes 20 ms and the time to read the bytes, within a factor of two."""
    costs = {}
    for index in range(models):
        size_bytes = max(int(rng.lognormvariate(16.1, 1.2)), 1024)
        load_s = (0.02 + size_bytes / load_bytes_per_s) * rng.uniform(0.7, 1.4)
        costs[f"m{index}"] = Cost(size_bytes, load_s)
    return costs


def equal_costs(models: int, size_bytes: int = 10_000_000, load_s: float = 0.1) -> dict[str, Cost]:
    return {f"m{index}": Cost(size_bytes, load_s) for index in range(models)}


def zipf(
    models: int, uses: int, rng: random.Random, exponent: float = 0.9, rate_per_s: float = 100.0
) -> Iterable[Use]:
    """Independent uses, the k-th most popular model in proportion to 1 / k^exponent; popularity is shuffled over the models."""
    order = list(range(models))
    rng.shuffle(order)
    weights = list(accumulate(1.0 / (rank + 1) ** exponent for rank in range(models)))
    at_s = 0.0
    for index in rng.choices(order, cum_weights=weights, k=uses):
        at_s += rng.expovariate(rate_per_s)
        yield Use(at_s, f"m{index}")


def drifting(
    models: int,
    uses: int,
    rng: random.Random,
    exponent: float = 0.9,
    rate_per_s: float = 100.0,
    epochs: int = 10,
) -> Iterable[Use]:
    """As `zipf`, but a tenth of the models change their popularity in every epoch."""
    order = list(range(models))
    rng.shuffle(order)
    weights = list(accumulate(1.0 / (rank + 1) ** exponent for rank in range(models)))
    at_s = 0.0
    for _ in range(epochs):
        for place in rng.sample(range(models), models // 10):
            other = rng.randrange(models)
            order[place], order[other] = order[other], order[place]
        for index in rng.choices(order, cum_weights=weights, k=uses // epochs):
            at_s += rng.expovariate(rate_per_s)
            yield Use(at_s, f"m{index}")


def with_sweep(trace: Iterable[Use], models: Sequence[str], at_share: float, uses: int) -> Iterable[Use]:
    """A trace with one use of every model, in order, put in after `at_share` of its `uses`."""
    for index, use in enumerate(trace):
        yield use
        if index == int(uses * at_share):
            for model in models:
                yield Use(use.at_s, model)
