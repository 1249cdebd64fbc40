"""A bound no policy can beat, not even one that knows the future.

For a request to find its model loaded, the model must have kept its bytes all the time since its previous use. There are
only so many bytes x steps in a trace. So the best conceivable policy keeps the stretches between two uses that save
most per byte and step until those are spent; forgetting that they must also fit side by side can only help it. (The lower
bound of "practical flow-based offline optimal", Berger, Beckmann and Harchol-Balter 2018, with what each request itself
must hold taken off.) How far it is from what is possible, nobody knows; Belady's rule shows what is possible.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelmesh.simulate.trace import Trace


class Bound(NamedTuple):
    """The least that any policy misses and loads on the requests that count."""

    misses: int
    load_s: float


class Bounds:
    """Of one trace, for any size of memory. `warmup` as in `Setup`."""

    def __init__(self, trace: Trace, next_use: NDArray[np.int64], warmup: float = 0.0) -> None:
        self._trace, self._next = trace, next_use
        self.warmup = warmup
        self._start = int(len(trace) * warmup)

    def at(self, memory_bytes: int, instances: int = 1) -> Bound:
        """`memory_bytes` is of all instances; a model must fit one of them, otherwise it is nobody's miss."""
        trace, n, start = self._trace, len(self._trace), self._start
        size_bytes, load_s = trace.size_bytes[trace.model], trace.load_s[trace.model]
        fits = size_bytes <= memory_bytes // instances
        index = np.arange(n, dtype=np.int64)
        counted = fits & (index >= start)
        kept = fits & (self._next < n) & (self._next >= start)
        steps = self._next[kept] - np.maximum(index[kept] + 1, start)
        weight = size_bytes[kept].astype(np.float64) * steps
        budget = float(memory_bytes) * (n - start) - float(size_bytes[counted].sum())
        saved = _most(np.ones(len(weight)), weight, budget)
        saved_s = _most(load_s[kept], weight, budget)
        return Bound(
            max(int(counted.sum()) - int(np.floor(saved + 1e-6)), 0),
            max(float(load_s[counted].sum()) - saved_s, 0.0),
        )


def _most(value: NDArray[np.float64], weight: NDArray[np.float64], budget: float) -> float:
    """The most value within the budget, when the last piece may be cut (fractional knapsack)."""
    order = np.argsort(weight / np.maximum(value, 1e-300), kind="stable")
    spent = np.cumsum(weight[order])
    whole = int(np.searchsorted(spent, budget, side="right"))
    most = float(value[order[:whole]].sum())
    if whole < len(order) and budget > 0:
        left = budget - (float(spent[whole - 1]) if whole else 0.0)
        most += float(value[order[whole]]) * left / float(weight[order[whole]])
    return most
