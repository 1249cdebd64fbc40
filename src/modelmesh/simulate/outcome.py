"""What a trace is replayed on, and what happened then."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Rule(StrEnum):
    """Who decides what goes."""

    RATE_COST = "rate-cost"
    LRU = "lru"
    OPTIMUM = "optimum"
    """Knows the future, and all memory is in one place."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a trace is replayed on. Memory is that of all instances together."""

    memory_bytes: int
    rule: Rule = Rule.RATE_COST
    instances: int = 1
    loads: int = 4
    """Loads at once in an instance."""
    slots: int = 8
    """Requests at once in an instance: what busyness is measured against."""
    seed: int = 0
    warmup: float = 0.0
    """Share of the requests, from the first, that fill the memory and are not counted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to the requests that count."""

    setup: Setup
    requests: int
    warm: int
    """Found their model loaded."""
    joined: int
    """Waited for a load under way."""
    misses: int
    """Began a load."""
    too_large: int
    """Asked for a model larger than an instance's memory: not served, not waiting."""
    first_uses: int
    """Misses of models that were never asked for before, which no amount of memory spares."""
    load_s: float
    wait_mean_s: float
    """Over all requests."""
    wait_p99_s: float
    wait_max_s: float
    slots_busy: float
    """Share of the load slots' time that was used; above 1 loads queue up without end."""
    lru_share: float
    """Share of the uses while the shadow let LRU decide; 0 for other rules."""
    thrashing: float
    """Share of the looks that saw loads evict what loads need; 0 for other rules."""

    @property
    def warm_share(self) -> float:
        return self.warm / self.requests if self.requests else 1.0


def quantile(waits: NDArray[np.float64], requests: int, q: float) -> float:
    """The `q` quantile of `requests` waits of which all but `waits` are 0: the smallest that q of them do not exceed."""
    above = requests - int(np.ceil(q * requests))
    if above >= len(waits):
        return 0.0
    place = len(waits) - 1 - above
    return float(np.partition(waits, place)[place])
