"""Which column of a log says what, and gathering rows into a trace."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite, nan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelmesh.simulate.trace import LoadCost, Trace, TraceError, assemble

REQUIRED: Final = ("time", "model")
OPTIONAL: Final = ("size", "service_s", "load_s")
"""size: bytes of the model. service_s: seconds the request took to run. load_s: seconds the model takes to load."""


def chosen(present: Sequence[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """Ours → the log's name of each column that is there. Raises TraceError when a required or a renamed one is not."""
    for ours in renamed:
        if ours not in REQUIRED + OPTIONAL:
            raise TraceError(
                f"There is no column {ours} to rename: it is one of {', '.join(REQUIRED + OPTIONAL)}."
            )
    found = {}
    for ours in REQUIRED + OPTIONAL:
        theirs = renamed.get(ours, ours)
        if theirs in present:
            found[ours] = theirs
        elif ours in REQUIRED or ours in renamed:
            raise TraceError(
                f"There is no column {theirs}, only {', '.join(present) or 'none'}: "
                f"say which one holds the {ours.removesuffix('_s')} with --columns {ours}=NAME."
            )
    return found


@dataclass(slots=True)
class PerModel:
    """Numbers of models as the log tells them, request by request: the largest size, the mean of times."""

    size_bytes: array[float] = field(default_factory=lambda: array("d"))
    sums: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in OPTIONAL[1:]})
    counts: dict[str, array[int]] = field(default_factory=lambda: {name: array("q") for name in OPTIONAL[1:]})

    def grow(self, models: int) -> None:
        """Make room for models up to number `models`."""
        more = models - len(self.size_bytes)
        self.size_bytes.extend([nan] * more)
        for name in OPTIONAL[1:]:
            self.sums[name].extend([0.0] * more)
            self.counts[name].extend([0] * more)

    def add(self, name: str, model: int, value: float) -> None:
        if name == "size":
            known = self.size_bytes[model]
            self.size_bytes[model] = value if known != known or value > known else known
        else:
            self.sums[name][model] += value
            self.counts[name][model] += 1

    def add_all(self, name: str, models: NDArray[np.int32], values: NDArray[np.float64]) -> None:
        """Many at once; NaN tells nothing."""
        told = ~np.isnan(values)
        models, values = models[told], values[told]
        if name == "size":
            np.fmax.at(np.frombuffer(self.size_bytes), models, values)
        else:
            np.add.at(np.frombuffer(self.sums[name]), models, values)
            np.add.at(np.frombuffer(self.counts[name], np.int64), models, 1)

    def means(self, name: str) -> NDArray[np.float64]:
        counts = np.array(self.counts[name], np.float64)
        return np.where(counts > 0, np.array(self.sums[name]) / np.maximum(counts, 1), nan)


def finish(
    at_s: NDArray[np.float64],
    model: NDArray[np.int32],
    names: Sequence[str],
    told: PerModel,
    default_size_bytes: int | None,
    cost: LoadCost,
) -> Trace:
    return assemble(
        at_s,
        model,
        names,
        size_bytes=np.array(told.size_bytes),
        load_s=told.means("load_s"),
        service_s=told.means("service_s"),
        default_size_bytes=default_size_bytes,
        cost=cost,
    )


def parse_time(text: str) -> float:
    """Seconds of any origin, or a date and time of ISO 8601 (UTC without an offset). Raises ValueError."""
    try:
        at_s = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not isfinite(at_s):
        raise ValueError(text)
    return at_s


def parse_amount(text: str) -> float:
    """A finite number, not below 0. Raises ValueError."""
    amount = float(text)
    if not isfinite(amount) or amount < 0:
        raise ValueError(text)
    return amount
