"""A trace: which model was asked for when, and what the models weigh. Columns, so that ten million requests fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class TraceError(ValueError):
    """A trace that cannot be replayed. A sentence that names the place and what to write instead."""


@dataclass(frozen=True, slots=True)
class LoadCost:
    """How long a model loads when the log does not say: `fixed_s` and the time to read its bytes."""

    fixed_s: float = 0.05
    bytes_per_s: float = 200e6

    def load_s(self, size_bytes: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.fixed_s + size_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of time, and the models by number."""

    at_s: NDArray[np.float64]
    """When, in seconds from the first request; never decreasing."""
    model: NDArray[np.int32]
    """Which: an index into the columns below."""
    names: Sequence[str]
    size_bytes: NDArray[np.int64]
    load_s: NDArray[np.float64]
    service_s: NDArray[np.float64]
    """Mean time a request of the model takes once it runs; 0 where unknown."""
    named_sizes: int
    """Of how many models the size was known; the others were given the default."""

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def models(self) -> int:
        return len(self.names)

    @property
    def total_bytes(self) -> int:
        """What all models weigh together: with this much memory each is loaded once."""
        return int(self.size_bytes.sum())

    @property
    def largest_bytes(self) -> int:
        return int(self.size_bytes.max(initial=0))

    @property
    def span_s(self) -> float:
        return float(self.at_s[-1]) if len(self.at_s) else 0.0

    def next_use(self) -> NDArray[np.int64]:
        """For each request the index of the next one of the same model; the number of requests when there is none."""
        n = len(self)
        following = np.full(n, n, np.int64)
        by_model = np.argsort(self.model, kind="stable")
        same = self.model[by_model[1:]] == self.model[by_model[:-1]]
        following[by_model[:-1][same]] = by_model[1:][same]
        return following


def assemble(
    at_s: NDArray[np.float64],
    model: NDArray[np.int32],
    names: Sequence[str],
    *,
    size_bytes: NDArray[np.float64],
    load_s: NDArray[np.float64],
    service_s: NDArray[np.float64],
    default_size_bytes: int | None,
    cost: LoadCost,
) -> Trace:
    """Put a trace in order of time. The last three columns are per model, NaN where unknown. Raises TraceError when a size is
    unknown and there is no default."""
    if not len(at_s):
        raise TraceError("There are no requests in it.")
    unknown = np.isnan(size_bytes)
    if default_size_bytes is None and unknown.any():
        first = names[int(np.flatnonzero(unknown)[0])]
        raise TraceError(
            f"The size of {int(unknown.sum())} of {len(names)} models is unknown, such as {first}: name a column that "
            "tells it (--columns size=NAME), or one size for all (--default-size 10MiB)."
        )
    sizes = np.where(unknown, default_size_bytes or 0, size_bytes).astype(np.int64)
    if (np.diff(at_s) < 0).any():
        order = np.argsort(at_s, kind="stable")
        at_s, model = at_s[order], model[order]
    known_load = np.where(np.isnan(load_s), cost.load_s(sizes), load_s)
    served_s = np.nan_to_num(service_s, nan=0.0)
    return Trace(at_s - at_s[0], model, names, sizes, known_load, served_s, int((~unknown).sum()))
