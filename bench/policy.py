"""Eviction and placement: load-seconds beside LRU on the same requests and memory, and what one decision costs."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Final

import numpy as np

from bench.report import Row
from modelmesh.policy.eviction import Policy, Resident, Residents, choose
from modelmesh.policy.rates import Uses
from modelmesh.simulate.engine import Replay
from modelmesh.simulate.outcome import Rule, Setup
from modelmesh.simulate.synthetic import parse_synthetic, synthesise
from modelmesh.simulate.trace import LoadCost

MEMORY_SHARE: Final = 0.15
SIZES_BYTES: Final = (2**10, 20 * 2**20)
"""Where sizes are unequal: log-uniform between these."""
COST: Final = LoadCost(fixed_s=0.002, bytes_per_s=200e6)
TRACES: Final = (
    ("unequal sizes with a sweep", "sweeps=1", 0.80, 0.65),
    ("unequal sizes, churn", "churn=0.1", 0.80, 0.65),
    ("unequal sizes, a crowd in bursts", "flash=0.5,burst=3", 0.80, 0.65),
    ("unequal sizes, a day with its night", "rate=2,day=1", 0.80, 0.65),
    ("equal sizes, churn", "spread=0,churn=0.1", 1.02, 1.02),
)
"""Name, parameters beside the common ones, and the shares of LRU's load-seconds that must be and are aimed for."""
SETUPS: Final = {1: "eviction", 4: "eviction and placement, four instances"}
"""Instances that share the memory: LRU places where its victim is oldest."""


def compare(*, quick: bool) -> list[Row]:
    rows = []
    for instances, decides in SETUPS.items():
        for name, parameters, must, aim in TRACES:
            ours_s, lru_s = load_seconds(parameters, instances, 50_000 if quick else 200_000)
            what = f"load-seconds against LRU, {decides}: {name}"
            rows.append(Row("policy", what, f"{ours_s:.0f} s", f"{lru_s:.0f} s", ours_s / lru_s, must, aim))
    us = decision_us()
    return [
        *rows,
        Row("policy", "one eviction among 200,000 residents", f"{us:.1f} µs", "", us, 50, 10, " µs"),
    ]


def load_seconds(parameters: str, instances: int, requests: int, seed: int = 3) -> tuple[float, float]:
    """Of rate-cost and of LRU, after a fifth of the requests has filled memory."""
    what = parse_synthetic(f"models=1000,requests={requests},zipf=1,size=1MiB,{parameters}")
    trace = synthesise(what, seed)
    if what.spread:
        sizes = np.exp(np.random.default_rng(seed).uniform(*np.log(SIZES_BYTES), trace.models))
        trace = replace(trace, size_bytes=sizes.astype(np.int64))
    trace = replace(trace, load_s=COST.load_s(trace.size_bytes))
    memory_bytes = int(MEMORY_SHARE * trace.total_bytes)
    ours, lru = (
        Replay(trace, Setup(memory_bytes, rule, instances, seed=seed, warmup=0.2)).run()
        for rule in (Rule.RATE_COST, Rule.LRU)
    )
    return ours.load_s, lru.load_s


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
