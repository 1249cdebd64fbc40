"""Which instance loads a copy: the one where it costs the least waiting.

cost = worth of what it would evict + waiting behind the loads queued there + use of a busy instance

All three are seconds that requests wait, expected within `HORIZON_S`. Old revisions cost twice. Preferred labels and
new zones and hosts are ranks that come before cost; among nearly equal costs the newest revision comes first, then the
rendezvous order decides, so that many who place at once do not all pick the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final, NamedTuple

from modelmesh.policy.eviction import miss_cost_s
from modelmesh.policy.keeper import score
from modelmesh.policy.runtimes import Constraint

NO_CONSTRAINT: Final = Constraint()
HORIZON_S: Final = 60.0
"""How long a placement is taken to stand: what is lost or spent per second counts for so long."""
NEAR_TIE: Final = 0.25
BUSY_MAX: Final = 0.95
"""Beyond, waiting grows faster than can be told."""
TIE_S: Final = 1e-3
"""Costs below a millisecond of waiting are all the same."""
OLD_REVISION: Final = 2.0
SPARE_SHARE: Final = 0.1
"""Of the memory is left free by guesses, so that the next load that is wanted need not evict first."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The copy to place."""

    model: str
    size_bytes: int
    load_s: float
    rate_per_s: float
    execution_s: float = 0.0
    """What the model server reports per request, 0 when unknown."""
    constraint: Constraint = NO_CONSTRAINT
    zones: tuple[str, ...] = ()
    """Of the copies there are, one each: zones with fewer are preferred, then hosts with fewer."""
    hosts: tuple[str, ...] = ()
    worth_s: float = inf
    """The most it may cost."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance as it published itself."""

    instance: str
    capacity_bytes: int
    free_bytes: int
    price: float = 0.0
    """Value density (`eviction.density`) of what it would evict next; infinite when it may evict nothing."""
    queue_s: float = 0.0
    """How long a load would wait for a slot there."""
    busyness: float = 0.0
    """Share of its serving slots in use."""
    labels: frozenset[str] = frozenset()
    zone: str = ""
    host: str = ""
    draining: bool = False
    cordoned: bool = False
    """Somebody wants nothing new there."""
    serves: bool = True
    """Its runtimes serve the type of the model."""
    failed: bool = False
    """It failed to load this model, and the failure stands."""
    old_revision: bool = False
    """It is soon to go (`revisions.old`)."""


class Placement(NamedTuple):
    """Where, and what it is expected to cost in seconds of waiting."""

    instance: str
    cost_s: float


class Refusal(NamedTuple):
    """Why there is no instance. `unsuited`: those that are there serve no such model, whatever else they hold."""

    reason: str
    unsuited: bool


def spare_bytes(free_bytes: int, capacity_bytes: int) -> int:
    """What may be filled on a guess; negative when too little is free."""
    return free_bytes - round(SPARE_SHARE * capacity_bytes)


def worth_s(wanted: Wanted) -> float:
    """Seconds that requests are spared, within the horizon, by having the copy."""
    return wanted.rate_per_s * miss_cost_s(wanted.load_s, wanted.rate_per_s) * HORIZON_S


def cost_s(wanted: Wanted, candidate: Candidate) -> float:
    """Seconds that requests will wait, within the horizon, because the copy is loaded there."""
    evicted_bytes = max(wanted.size_bytes - candidate.free_bytes, 0)
    lost_s = candidate.price * evicted_bytes * HORIZON_S if evicted_bytes else 0.0
    alone_s = miss_cost_s(wanted.load_s, wanted.rate_per_s)
    queued_s = miss_cost_s(wanted.load_s + candidate.queue_s, wanted.rate_per_s) - alone_s
    busy = min(candidate.busyness, BUSY_MAX)
    busy_s = busy / (1.0 - busy) * wanted.rate_per_s * wanted.execution_s * HORIZON_S
    return (lost_s + queued_s + busy_s) * (OLD_REVISION if candidate.old_revision else 1.0)


def place(wanted: Wanted, candidates: Sequence[Candidate]) -> Placement | Refusal:
    """The instance to load at, or why there is none."""
    allowed = [candidate for candidate in candidates if not _bar(wanted, candidate)]
    if not allowed:
        return _refusal(wanted, candidates)
    if wanted.worth_s < inf:
        allowed = [candidate for candidate in allowed if cost_s(wanted, candidate) <= wanted.worth_s]
    if not allowed:
        return Refusal(
            f"One more copy of {wanted.model} saves less waiting than it costs in every instance that could hold it.",
            False,
        )
    best_rank = min(_rank(wanted, candidate) for candidate in allowed)
    costs = [
        (cost_s(wanted, candidate), candidate)
        for candidate in allowed
        if _rank(wanted, candidate) == best_rank
    ]
    limit_s = min(cost for cost, _ in costs) * (1.0 + NEAR_TIE) + TIE_S
    cost, chosen = max(
        ((cost, candidate) for cost, candidate in costs if cost <= limit_s),
        key=lambda near: (
            not near[1].old_revision,
            score(wanted.model, near[1].instance, float(near[1].capacity_bytes)),
            near[1].instance,
        ),
    )
    return Placement(chosen.instance, cost)


def may_hold(wanted: Wanted, candidate: Candidate) -> bool:
    """Whether the instance could hold the copy, if not now because it failed to load it lately."""
    return not _bar(wanted, replace(candidate, failed=False))


def _rank(wanted: Wanted, candidate: Candidate) -> tuple[bool, int, int]:
    preferred = wanted.constraint.preferred
    return (
        bool(preferred) and not preferred & candidate.labels,
        wanted.zones.count(candidate.zone) if candidate.zone else 0,
        wanted.hosts.count(candidate.host) if candidate.host else 0,
    )


def _bar(wanted: Wanted, candidate: Candidate) -> str:
    """Why the instance may not hold the model; empty when it may."""
    if candidate.draining:
        return "is draining"
    if candidate.cordoned:
        return "is cordoned"
    if not candidate.serves:
        return "does not serve its type"
    if wanted.size_bytes > candidate.capacity_bytes:
        return f"holds {candidate.capacity_bytes} bytes at most"
    if candidate.failed:
        return "failed to load it lately"
    lacking = wanted.constraint.required - candidate.labels
    return f"lacks the label {', '.join(sorted(lacking))}" if lacking else ""


def _refusal(wanted: Wanted, candidates: Sequence[Candidate]) -> Refusal:
    if not candidates:
        return Refusal(f"No instance is there to load {wanted.model}.", False)
    told = "; ".join(f"{candidate.instance} {_bar(wanted, candidate)}" for candidate in candidates[:5])
    more = f"; and {len(candidates) - 5} more" if len(candidates) > 5 else ""
    suited = any(one.serves and wanted.constraint.required <= one.labels for one in candidates)
    return Refusal(
        f"No instance can load {wanted.model} of {wanted.size_bytes} bytes: {told}{more}.", not suited
    )
