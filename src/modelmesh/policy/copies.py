"""How many copies or replicas of a model are wanted, from its use of the slots that serve it."""

from __future__ import annotations

from math import ceil
from typing import Final

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
