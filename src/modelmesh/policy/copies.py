"""How many copies or replicas of a model are wanted, from its use of the slots that serve it; and which of them stay."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final, NamedTuple

from modelmesh.policy.keeper import score

UTILISATION: Final = 0.65
"""Wanted share of the slots in use; above it queues grow faster than rates."""
SHRINK_BELOW: Final = 0.80
"""A copy is given up only when this share of the remaining slots' wanted use would still suffice."""


def wanted(rate_per_s: float, execution_s: float, slots_per_copy: int, minimum: int, maximum: int) -> int:
    """ceil(rate x execution time / (0.65 x slots per copy)), between `minimum` and `maximum`.

    `execution_s` is what the model server reports, never latency at the relay: a busy worker moves models, it does
    not make copies. `slots_per_copy` 0 means no bound: one copy serves any rate.
    """
    if slots_per_copy <= 0:
        return max(minimum, min(1, maximum))
    busy_slots = rate_per_s * execution_s
    return max(minimum, min(maximum, ceil(busy_slots / (UTILISATION * slots_per_copy) - 1e-9)))


def next_count(
    current: int,
    rate_per_s: float,
    execution_s: float,
    slots_per_copy: int,
    queued: bool,
    minimum: int,
    maximum: int,
) -> int:
    """The count to move to. Up at once, also when requests queue at the gates though the rate does not show it
    yet; down by one at a time, and only when the fewer would stay well below the wanted use."""
    target = wanted(rate_per_s, execution_s, slots_per_copy, minimum, maximum)
    if queued:
        target = max(target, min(current + 1, maximum))
    if target >= current:
        return target
    fewer = current - 1
    roomy = rate_per_s * execution_s <= SHRINK_BELOW * UTILISATION * slots_per_copy * fewer
    return max(fewer, minimum) if roomy or slots_per_copy <= 0 else current


class Holder(NamedTuple):
    """An instance that has a copy. An empty zone or host is not known, and like no other."""

    instance: str
    zone: str = ""
    host: str = ""


def kept(model: str, holders: Sequence[Holder], n: int) -> list[str]:
    """Which `n` of the holders keep their copies when the others are not needed: in as many zones, then on as many hosts as
    can be, else the nearest by rendezvous.

    Every holder that sees the same ones says the same, so that not all of them give their copies up at once, nor none.
    """
    left = sorted(holders, key=lambda holder: (-score(model, holder.instance, 1.0), holder.instance))
    chosen: list[Holder] = []
    while left and len(chosen) < n:
        best = min(left, key=lambda holder: _crowd(holder, chosen))
        left.remove(best)
        chosen.append(best)
    return [holder.instance for holder in chosen]


def _crowd(holder: Holder, chosen: Sequence[Holder]) -> tuple[int, int]:
    """How many of the chosen share its zone, and its host."""
    return (
        sum(bool(holder.zone) and other.zone == holder.zone for other in chosen),
        sum(bool(holder.host) and other.host == holder.host for other in chosen),
    )
