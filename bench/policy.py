"""Eviction: load-seconds beside LRU on the same uses and bytes, and what one decision costs."""

from __future__ import annotations

import random
import time

import numpy as np

from bench.report import Row
from modelmesh.policy.eviction import Policy, Resident, Residents, choose
from modelmesh.policy.rates import Uses
from modelmesh.policy.shadow import LruCache, RateCostCache

N_MODELS = 2000
MEMORY_SHARE = 0.15
LOAD_FIXED_S, LOAD_S_PER_BYTE = 0.002, 1 / 200e6


def compare(*, quick: bool) -> list[Row]:
    n_uses = 100_000 if quick else 400_000
    rows = []
    for name, must, aim in (("unequal", 0.80, 0.65), ("equal", 1.02, 1.02)):
        ours_s, lru_s = load_seconds(n_uses, equal=name == "equal")
        what = f"load-seconds against LRU, {name} sizes, Zipf with a sweep"
        rows.append(Row("policy", what, f"{ours_s:.0f} s", f"{lru_s:.0f} s", ours_s / lru_s, must, aim))
    us = decision_us()
    return [
        *rows,
        Row("policy", "one eviction among 200,000 residents", f"{us:.1f} µs", "", us, 50, 10, " µs"),
    ]


def load_seconds(n_uses: int, *, equal: bool, seed: int = 3) -> tuple[float, float]:
    """Of rate-cost and of LRU, on `n_uses` Zipf uses at 200 a second, with all models swept once in the middle."""
    rng = np.random.default_rng(seed)
    sizes = (
        np.full(N_MODELS, 2**20)
        if equal
        else np.exp(rng.uniform(np.log(2**10), np.log(20 * 2**20), N_MODELS))
    )
    weights = 1 / np.arange(1, N_MODELS + 1)
    popular = rng.permutation(N_MODELS)[rng.choice(N_MODELS, n_uses, p=weights / weights.sum())]
    order = np.concatenate([popular[: n_uses // 2], rng.permutation(N_MODELS), popular[n_uses // 2 :]])
    times_s = np.cumsum(rng.exponential(1 / 200, len(order)))
    capacity_bytes = MEMORY_SHARE * float(sizes.sum())
    lru, ours = LruCache(capacity_bytes), RateCostCache(capacity_bytes, random.Random(seed))
    known = [Uses() for _ in range(N_MODELS)]
    ours_s = lru_s = 0.0
    for model, now_s in zip(order.tolist(), times_s.tolist(), strict=True):
        size_bytes = int(sizes[model])
        load_s = LOAD_FIXED_S + LOAD_S_PER_BYTE * size_bytes
        known[model].record(now_s)
        if not ours.access(str(model), size_bytes, load_s, known[model], now_s):
            ours_s += load_s
        if not lru.access(str(model), size_bytes):
            lru_s += load_s
    return ours_s, lru_s


def decision_us(n_residents: int = 200_000, n_decisions: int = 5_000) -> float:
    """Mean time to sample, choose and remove one victim, and to add another copy in its place."""
    rng = random.Random(4)
    residents = Residents(rng)
    copies = []
    for number in range(n_residents):
        uses = Uses()
        for _ in range(3):
            uses.record(rng.uniform(0, 1000))
        copies.append(Resident(str(number), rng.randrange(2**10, 2**24), rng.uniform(0.001, 0.1), uses, 0.0))
        residents.add(copies[-1])
    started_s = time.perf_counter()
    for _ in range(n_decisions):
        chosen = choose(residents.sample(Policy.RATE_COST, 1000.0))
        if chosen is None:
            raise AssertionError("nothing to evict among the residents")
        victim, _ = chosen
        residents.discard(victim)
        residents.add(victim)
    return (time.perf_counter() - started_s) / n_decisions * 1e6
