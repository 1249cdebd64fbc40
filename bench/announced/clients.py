"""Clients in a process per instance, and what they waited for, as a histogram."""

from __future__ import annotations

import asyncio
import multiprocessing
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.models import ZooModel
from bench.traffic import Clients, Tally

BOUNDS_MS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back. `counts` are answers by latency: up to the first of `BOUNDS_MS`, up to the second, ..., beyond the last."""

    what: str
    per_second: float
    asked: int
    errors: int
    wrong: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    counts: Sequence[int]
    told: Sequence[str]


def at_once(
    addresses: Sequence[str], index: Sequence[ZooModel], n_clients: int, seconds: float, seed: int = 1
) -> Answered:
    """So many clients in all, each of which asks as soon as it has been answered."""
    each = n_clients // len(addresses)
    return _run(f"{n_clients:,} requests at a time", addresses, partial(_zipf, index, each, seconds, seed))


def steadily(
    addresses: Sequence[str], index: Sequence[ZooModel], per_second: float, seconds: float, seed: int = 1
) -> Answered:
    """So many requests a second in all, whatever is answered; each one's time counts from when it was due."""
    each = per_second / len(addresses)
    return _run(
        f"{per_second:,.0f} requests a second", addresses, partial(_steady, index, each, seconds, seed)
    )


def _zipf(index: Sequence[ZooModel], n_clients: int, seconds: float, seed: int, address: str) -> Tally:
    return asyncio.run(_clients(index, n_clients, seed, address).zipf(seconds))


def _steady(index: Sequence[ZooModel], per_second: float, seconds: float, seed: int, address: str) -> Tally:
    return asyncio.run(_clients(index, 16, seed, address).steady(per_second, seconds))


def _clients(index: Sequence[ZooModel], n_clients: int, seed: int, address: str) -> Clients:
    return Clients(address, index, n_clients=n_clients, seed=seed)


def _run(what: str, addresses: Sequence[str], ask: Callable[[str], Tally]) -> Answered:
    with ProcessPoolExecutor(len(addresses), mp_context=multiprocessing.get_context("spawn")) as processes:
        tallies = list(processes.map(ask, addresses))
    took_ms = np.concatenate([np.asarray(tally.latencies_ms) for tally in tallies])
    counts = [0] * (len(BOUNDS_MS) + 1)
    for each in took_ms:
        counts[bisect_left(BOUNDS_MS, each)] += 1
    p50_ms, p99_ms, max_ms = np.percentile(took_ms, (50, 99, 100)) if len(took_ms) else (np.nan,) * 3
    return Answered(
        what,
        len(took_ms) / max(tally.seconds for tally in tallies),
        sum(tally.asked for tally in tallies),
        sum(tally.n_errors for tally in tallies),
        sum(tally.n_wrong for tally in tallies),
        float(p50_ms),
        float(p99_ms),
        float(max_ms),
        counts,
        [told for tally in tallies for told in (*tally.errors, *tally.wrong)][:5],
    )
