"""Rate-cost beats LRU where it should, and is not much worse where it cannot; numbers are shares of LRU's load-seconds."""

from __future__ import annotations

import random

import numpy as np
import pytest

from modelmesh.simulate.engine import Replay
from modelmesh.simulate.outcome import Outcome, Rule, Setup
from modelmesh.simulate.synthetic import Synthetic, synthesise
from modelmesh.simulate.trace import Trace

USUAL = Synthetic(models=300, requests=6_000, rate=10.0, sweep_rate=10.0)


def both(trace: Trace, memory_bytes: int) -> tuple[Outcome, float]:
    """Of rate-cost, and its load-seconds as a share of LRU's."""
    mine, lru = (
        Replay(trace, Setup(memory_bytes, rule, loads=8)).run() for rule in (Rule.RATE_COST, Rule.LRU)
    )
    return mine, mine.load_s / lru.load_s


@pytest.mark.parametrize(
    ("what", "most"),
    [
        (USUAL, 0.9),
        (Synthetic(models=300, requests=6_000, rate=10.0, spread=0.0, sweeps=1), 0.9),
        (Synthetic(models=300, requests=6_000, rate=10.0, spread=0.0, churn=0.1), 1.02),
        (Synthetic(models=300, requests=6_000, rate=10.0, flash=0.5, burst=3.0), 0.9),
    ],
    ids=["unequal sizes", "equal sizes and a sweep", "equal sizes and churn", "a crowd in bursts"],
)
def test_load_seconds_beside_lru(what: Synthetic, most: float) -> None:
    trace = synthesise(what, seed=5)
    _, share = both(trace, trace.total_bytes * 15 // 100)
    assert share < most


def test_where_only_recency_helps_the_shadow_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of models slides on and never returns: what was used often is worth nothing."""
    rng = random.Random(1)
    models = [step % 9 for step in range(900)] + [100 + step // 3 + rng.randrange(8) for step in range(5000)]
    n = max(models) + 1
    trace = Trace(
        np.arange(len(models), dtype=np.float64),
        np.array(models, np.int32),
        [f"m{number}" for number in range(n)],
        np.full(n, 10, np.int64),
        np.full(n, 0.1),
        np.zeros(n),
        named_sizes=n,
    )
    mine, share = both(trace, 100)
    assert share < 1.05 and mine.lru_share > 0.7
    monkeypatch.setattr("modelmesh.policy.shadow.EVIDENCE_MISSES", 10**9)
    alone, share = both(trace, 100)
    assert alone.lru_share == 0.0 and share > 1.2
