"""What is counted here, for the metrics page. Plain numbers; the ops room renders them.

Names and buckets are the predecessor's (reference mesh.md 10.3); those without an equal there are ours.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

_S: Final = 1000.0
MILLISECONDS: Final = (
    0.5, 1, 2, 5, 10, 20, 50, 75, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 6e4, 1.2e5, 3e5,
)  # fmt: skip
AGES_MS: Final = (
    30 * _S, 300 * _S, 900 * _S, 3600 * _S, 14400 * _S, 43200 * _S, 86400 * _S, 604800 * _S, 2592000 * _S, 7776000 * _S,
)  # fmt: skip
SIZES_BYTES: Final = tuple(float(256 * 1024 * 4**power) for power in range(8))


@dataclass(slots=True)
class Histogram:
    """`counts[i]` observations fell at or below `buckets[i]` and above the one before; the last count is +Inf."""

    buckets: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.buckets) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)


def _histograms() -> dict[str, Histogram]:
    return {
        "modelmesh_loadmodel_milliseconds": Histogram(MILLISECONDS),
        "modelmesh_unloadmodel_milliseconds": Histogram(MILLISECONDS),
        "modelmesh_loading_queue_delay_milliseconds": Histogram(MILLISECONDS),
        "modelmesh_model_sizing_milliseconds": Histogram(MILLISECONDS),
        "modelmesh_age_at_eviction_milliseconds": Histogram(AGES_MS),
        "modelmesh_loaded_model_size_bytes": Histogram(SIZES_BYTES),
    }


def _counters() -> dict[str, int]:
    return {
        "modelmesh_loadmodel": 0,
        "modelmesh_loadmodel_failure": 0,
        "modelmesh_unloadmodel": 0,
        "modelmesh_unloadmodel_failure": 0,
        "modelmesh_unloadmodel_attempt_failure": 0,
        "modelmesh_model_evicted": 0,
        "modelmesh_evictions_cancelled": 0,
        "modelmesh_faults": 0,
        "modelmesh_refusals": 0,
        "modelmesh_copies_lost": 0,
        "modelmesh_loads_abandoned": 0,
        "modelmesh_gate_queueing": 0,
        "modelmesh_scaled_up": 0,
        "modelmesh_scaled_down": 0,
        "modelmesh_canaries_promoted": 0,
        "modelmesh_canaries_rolled_back": 0,
    }


OTHERS: Final = "other"
_IDLE_S: Final = 3600.0


@dataclass(slots=True)
class Measures:
    """Totals since the start. Counters only grow. `by_model` tells histograms apart by model too, for at most `models_max` of
    them, by the rules of `DataPlaneConfig.model_series_max`."""

    histograms: dict[str, Histogram] = field(default_factory=_histograms)
    counters: dict[str, int] = field(default_factory=_counters)
    models_max: int = 0
    now_s: Callable[[], float] = time.monotonic
    by_model: dict[str, dict[str, Histogram]] = field(default_factory=dict)
    """By model, then by name."""
    _used_s: dict[str, float] = field(default_factory=dict)
    """When each of those was last observed, the longest ago first."""

    def count(self, name: str, n: int = 1) -> None:
        self.counters[name] += n

    def observe(self, name: str, value: float, model: str = "") -> None:
        self.histograms[name].observe(value)
        if self.models_max:
            self._of(model)[name].observe(value)

    def _of(self, model: str) -> dict[str, Histogram]:
        now_s = self.now_s()
        if model not in self.by_model and len(self._used_s) >= self.models_max:
            oldest = next(iter(self._used_s))
            if now_s - self._used_s[oldest] < _IDLE_S:
                return self.by_model.setdefault(OTHERS, _histograms())
            del self._used_s[oldest], self.by_model[oldest]
        self._used_s.pop(model, None)
        self._used_s[model] = now_s
        return self.by_model.setdefault(model, _histograms())
