"""The order in which loads are served, and what may pass what.

Urgent loads (requests wait) come before those asked for, those before copies made for what is expected, those before
guesses. The last two are made only in place of what is worth less, or of nothing. Among urgent
ones: most waiting seconds saved per second of loading (Smith's rule: priority x waiting / load seconds), doubled for every
`AGEING_S` of waiting so that nobody starves: a load a thousand times less urgent is delayed by ten doublings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from math import log2
from typing import Final, NamedTuple

AGEING_S: Final = 2.0
_LOAD_S_MIN: Final = 1e-3


class Why(IntEnum):
    """Why a load is wanted, most pressing first."""

    URGENT = 0
    """Requests wait."""
    ASKED = 1
    """Somebody asked for it."""
    SCALE = 2
    """Requests are expected: more copies of a model in use, or one in the place of one that was lost. Only what is worth less is
    evicted for it."""
    PREWARM = 3
    """A guess: nothing is evicted for it."""


class Order(NamedTuple):
    """Smaller is sooner. It does not change while time passes, so it can live in a heap."""

    why: Why
    rank: float


def order(why: Why, waiting: int, load_s: float, since_s: float, priority: float = 1.0) -> Order:
    """`load_s` is the expected duration (0: unknown, taken as short), `since_s` when the wanting began, `priority` (above 0)
    how much the waiting counts."""
    gain = log2(priority * max(waiting, 1) / max(load_s, _LOAD_S_MIN))
    return Order(why, since_s / AGEING_S - gain)


class Claim(NamedTuple):
    """A queued load: what it must reserve."""

    needed_bytes: int
    evicts: bool = True
    """Others are evicted for it, whatever they are worth."""
    gentle: bool = False
    """It is one of perhaps very many, which may use some of the slots only."""


def startable(
    claims: Sequence[Claim], slots: int, free_bytes: int, incoming_bytes: int, gentle_slots: int = 0
) -> tuple[list[int], int]:
    """Which of the queued loads, in queue order, may start now; and the bytes those still blocked lack. Gentle ones start on
    `gentle_slots` of the slots; beyond, they hold up nobody.

    Freed bytes belong to the head: a later load starts only when the free bytes hold it and what remains, with
    what is `incoming` from unloads, still holds everything blocked before it. Room is only lacking for as many
    blocked loads as slots are free, and always for one, so that memory is made while all slots work.
    """
    started: list[int] = []
    blocked_bytes = lacking_bytes = 0
    blocked = 0
    for index, claim in enumerate(claims):
        fits = claim.needed_bytes <= free_bytes
        fair = blocked_bytes == 0 or blocked_bytes + claim.needed_bytes <= free_bytes + incoming_bytes
        if claim.gentle and gentle_slots <= 0:
            continue
        if slots and fits and fair:
            started.append(index)
            slots -= 1
            gentle_slots -= claim.gentle
            free_bytes -= claim.needed_bytes
        else:
            blocked_bytes += claim.needed_bytes
            blocked += 1
            if claim.evicts and blocked <= max(slots, 1):
                lacking_bytes = max(lacking_bytes, blocked_bytes - free_bytes - incoming_bytes)
    return started, lacking_bytes


def ready_in_s(load_s: Iterable[float], slots: int, running_s: Iterable[float]) -> list[float]:
    """When each queued load will be done, in queue order; `running_s` is what the running ones still need.

    Slots are taken by whoever comes next, as soon as one is free (list scheduling). A duration of 0 is unknown and
    taken as nothing: nobody is refused on ignorance.
    """
    busy = sorted(running_s)[: max(slots, 1)]
    busy = [0.0] * (max(slots, 1) - len(busy)) + busy
    ready = []
    for duration_s in load_s:
        done_s = busy[0] + duration_s
        busy[0] = done_s
        busy.sort()
        ready.append(done_s)
    return ready
