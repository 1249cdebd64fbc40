"""Traces made up by parameters, for those who have no log yet. The same parameters and seed make the same trace."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelmesh.settings.sizes import parse_size
from modelmesh.simulate.trace import LoadCost, Trace, TraceError

EPOCHS: Final = 10
"""Popularity changes so many times in a trace."""
FLASH_SPAN: Final = 0.05


@dataclass(frozen=True, slots=True)
class Synthetic:
    """What the trace is like. Documented in docs/simulate.md, defaults included."""

    models: int = 1_000
    requests: int = 200_000
    rate: float = 50.0
    """Requests per second, on average."""
    zipf: float = 0.9
    """The k-th most popular model is asked for in proportion to 1 / k^zipf; 0: all alike."""
    burst: float = 1.0
    """Coefficient of variation of the gaps between requests: 1 is a Poisson process, above it requests cluster."""
    day: float = 0.0
    """How far the rate swings around its average in a day of 86,400 s, 0 to 1."""
    size: int = 10 * 2**20
    """Median bytes of a model."""
    spread: float = 1.2
    """Sigma of the log-normal sizes; 0: all equal."""
    load_spread: float = 1.4
    """Load times differ by up to this factor either way from what the bytes say."""
    service: float = 0.005
    """Seconds a request runs."""
    churn: float = 0.0
    """Share of the models that trade their popularity with another one, ten times in the trace."""
    sweeps: int = 0
    """How often somebody asks for every model once, evenly spread over the trace."""
    sweep_rate: float = 5.0
    """Models per second in a sweep."""
    flash: float = 0.0
    """Share of the requests that go to one unpopular model for a twentieth of the trace, in its middle."""


def parse_synthetic(text: str) -> Synthetic:
    """`models=2000,zipf=1.1,…` over the defaults; empty: the defaults. Raises TraceError."""
    made = Synthetic()
    known = {field.name: field for field in fields(Synthetic)}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if name not in known or not equals:
            raise TraceError(
                f"{part!r} is no parameter of a synthetic trace: NAME=VALUE, with {', '.join(known)}."
            )
        kind = known[name].type
        try:
            number = float(parse_size(value)) if name == "size" else float(value)
            if not np.isfinite(number) or number < 0:
                raise ValueError("is not a number from 0 up")
        except ValueError as error:
            why = str(error) if str(error).startswith("is ") else "is not a number"
            raise TraceError(f"{name}={value} {why}.") from None
        settled: Any = round(number) if kind == "int" else number
        made = replace(made, **{name: settled})
    return _checked(made)


def synthesise(what: Synthetic, seed: int = 0, cost: LoadCost | None = None) -> Trace:
    """Make the trace. Raises TraceError on parameters out of range."""
    _checked(what)
    rng = np.random.default_rng(seed)
    sizes = _sizes(what, rng)
    loads_s = (cost or LoadCost()).load_s(sizes) * np.exp(
        rng.uniform(-1.0, 1.0, what.models) * np.log(what.load_spread)
    )
    at_s = _arrivals(what, rng)
    model = _asked(what, rng)
    at_s, model = _with_sweeps(what, rng, at_s, model)
    names = [f"m{number}" for number in range(what.models)]
    service_s = np.full(what.models, what.service)
    return Trace(at_s - at_s[0], model, names, sizes, loads_s, service_s, named_sizes=what.models)


def _checked(what: Synthetic) -> Synthetic:
    for name, least, most in (
        ("models", 1, 10**7),
        ("requests", 1, 10**9),
        ("rate", 1e-6, 1e9),
        ("burst", 0.0, 100.0),
        ("day", 0.0, 1.0),
        ("size", 1, 2**50),
        ("spread", 0.0, 5.0),
        ("load_spread", 1.0, 100.0),
        ("churn", 0.0, 1.0),
        ("sweeps", 0, 10_000),
        ("sweep_rate", 1e-6, 1e9),
        ("flash", 0.0, 1.0),
    ):
        value = getattr(what, name)
        if not least <= value <= most:
            raise TraceError(f"{name}={value} is not between {least:g} and {most:g}.")
    return what


def _sizes(what: Synthetic, rng: np.random.Generator) -> NDArray[np.int64]:
    sizes: NDArray[np.float64] = what.size * np.exp(rng.normal(0.0, what.spread, what.models))
    return np.maximum(sizes, 1.0).astype(np.int64)


def _arrivals(what: Synthetic, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gamma gaps of mean 1 and the variation asked for; then time runs faster or slower with the hour of the day."""
    if what.burst > 0:
        shape = 1.0 / what.burst**2
        gaps = rng.gamma(shape, what.burst**2, what.requests)
    else:
        gaps = np.ones(what.requests)
    at_s: NDArray[np.float64] = np.cumsum(gaps) / what.rate
    if what.day:
        day_s = 86_400.0
        grid_s = np.arange(0.0, at_s[-1] + 2 * day_s, 60.0)
        turn = 2.0 * np.pi / day_s
        expected = grid_s + what.day / turn * (1.0 - np.cos(turn * grid_s))
        at_s = np.interp(at_s, expected, grid_s)
    return at_s


def _asked(what: Synthetic, rng: np.random.Generator) -> NDArray[np.int32]:
    """Which model each request asks for."""
    edges = np.cumsum(1.0 / np.arange(1, what.models + 1) ** what.zipf)
    by_rank = rng.permutation(what.models)
    asked = np.empty(what.requests, np.int32)
    bounds = np.linspace(0, what.requests, EPOCHS + 1).astype(int)
    for epoch, (start, end) in enumerate(pairwise(bounds)):
        if epoch and what.churn:
            for rank in rng.choice(what.models, round(what.churn * what.models), replace=False):
                other = rng.integers(what.models)
                by_rank[rank], by_rank[other] = by_rank[other], by_rank[rank]
        ranks = np.searchsorted(edges, rng.random(end - start) * edges[-1], side="right")
        asked[start:end] = by_rank[np.minimum(ranks, what.models - 1)]
    if what.flash:
        start = int(what.requests * (0.5 - FLASH_SPAN / 2))
        crowd = asked[start : start + int(what.requests * FLASH_SPAN)]
        crowd[rng.random(len(crowd)) < what.flash] = by_rank[-1]
    return asked


def _with_sweeps(
    what: Synthetic, rng: np.random.Generator, at_s: NDArray[np.float64], model: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    times, models = [at_s], [model]
    for number in range(what.sweeps):
        begin_s = at_s[-1] * (number + 1) / (what.sweeps + 1)
        times.append(begin_s + np.arange(what.models) / what.sweep_rate)
        models.append(rng.permutation(what.models).astype(np.int32))
    at_s, model = np.concatenate(times), np.concatenate(models)
    order = np.argsort(at_s, kind="stable")
    return at_s[order], model[order]
