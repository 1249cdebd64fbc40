"""How many copies or replicas of a model are wanted, from its use of the slots that serve it; and which of them stay."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final, NamedTuple

from modelmesh.policy.eviction import miss_cost_s
from modelmesh.policy.keeper import score
from modelmesh.policy.placement import HORIZON_S

UTILISATION: Final = 0.65
"""Wanted share of the slots in use; above it queues grow faster than rates."""
SHRINK_BELOW: Final = 0.80
"""A copy is given up only when this share of the remaining slots' wanted use would still suffice."""
QUEUE_S: Final = 0.05
"""A wait that is felt: shorter ones are what batches and bursts are made of."""
FULL: Final = 0.9
"""Share of the slots in use, from one look to the next, that leaves no room for chance when requests queue, too."""
SHARE_MAX: Final = 0.95
SHARE_OF_ONE_MORE: Final = 0.66
"""A use that asks for one copy more, where requests wait though the slots do not show it yet."""
LOSSES_PER_S: Final = 1.0 / 86_400.0
"""An instance is taken to be lost once a day."""
USED_WITHIN_S: Final = 3_600.0
"""A model that is not expected to be used within this needs no second copy."""


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


class SlotUse(NamedTuple):
    """How one copy is used, as its holder sees it. The other copies are taken to be used alike: requests are balanced."""

    slots: int
    """Requests it executes at once; 0: any number."""
    share: float
    """Of the slots, in use since the last look; beyond 1 when more was executed than there was time for."""
    mean_share: float
    """The same over the last seconds."""
    queued: int
    """Requests that wait for a slot."""
    wait_s: float
    """How long one that comes now waits, as far as can be told."""

    @property
    def pressed(self) -> bool:
        """Whether requests wait because this copy is too little; not by chance, nor for other models of its server."""
        full = self.share >= FULL and self.queued >= 2 * self.slots
        return self.queued > 0 and (full or self.wait_s >= QUEUE_S)


def grown(copies: int, use: SlotUse, *, lasting: bool, maximum: int) -> int:
    """How many copies there should be, when that is more than there are. `lasting`: requests have waited for a while already.

    At most twice as many at once: what these do is seen before more are made.
    """
    if not use.slots:
        return copies
    share = use.mean_share
    if lasting and use.pressed:
        share = max(share, min(use.share, 1.0), SHARE_OF_ONE_MORE)
    target = wanted(copies * share * use.slots, 1.0, use.slots, copies, 2 * copies)
    return max(copies, min(target, maximum))


def waiting(use: SlotUse) -> float:
    """Requests that wait at a time, which is also the seconds waited per second (Little's law): those seen, or those expected
    at this use (M/M/1)."""
    share = min(use.mean_share, SHARE_MAX)
    return max(float(use.queued), use.slots * share * share / (1.0 - share))


def shrinks(copies: int, use: SlotUse, rest: Sequence[float]) -> bool:
    """Whether one copy fewer carries the load: the wanted use of the others stays well below, and so does that of the instances
    that hold them (`rest`: the share of all their slots in use)."""
    if copies < 2 or use.queued:
        return False
    limit = SHRINK_BELOW * UTILISATION
    more = use.mean_share / (copies - 1)
    return use.mean_share + more <= limit and all(busyness + more <= limit for busyness in rest)


def spared_s(rate_per_s: float, load_s: float) -> float:
    """Seconds of waiting that a second copy spares within the horizon of placement, because an instance may be lost that holds
    the only one; 0 for a model that is hardly used."""
    if rate_per_s * USED_WITHIN_S < 1.0:
        return 0.0
    return LOSSES_PER_S * HORIZON_S * miss_cost_s(load_s, rate_per_s)


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
