"""Which copy to evict: the one whose bytes save the least loading.

    value density = expected rate x cost of a miss / bytes
    cost of a miss = L + rate x L^2 / 2      (others arrive while it loads; L: its load seconds)

A newcomer is in probation until its second use. While probation holds more than a tenth of what is loaded,
victims come from there, so a sweep over all models churns only that.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

from modelmesh.policy.rates import Uses

SAMPLE: Final = 64
PROBATION_SHARE: Final = 0.10
RESIDENCE_LOADS: Final = 3.0
RESIDENCE_S_MAX: Final = 5.0
_LOAD_S_MIN: Final = 1e-3
"""A load that costs nothing would make every model worth nothing, and the choice blind."""


class Policy(StrEnum):
    """What decides now: `LRU` when the shadow showed it to be better."""

    RATE_COST = "rate-cost"
    LRU = "lru"


class Resident:
    """A loaded copy as eviction sees it. `index` is its place among the residents, -1 when it is not evictable."""

    __slots__ = ("in_flight", "index", "load_s", "model", "protected", "since_s", "size_bytes", "uses")

    def __init__(self, model: str, size_bytes: int, load_s: float, uses: Uses, since_s: float) -> None:
        self.model = model
        self.size_bytes = size_bytes
        self.load_s = load_s
        self.uses = uses
        self.since_s = since_s
        """When it was loaded: its minimum residence starts here."""
        self.in_flight = 0
        self.protected = False
        """Out of probation."""
        self.index = -1


def miss_cost_s(load_s: float, rate_per_s: float) -> float:
    """Seconds waited in all because one request found the model cold."""
    load_s = max(load_s, _LOAD_S_MIN)
    return load_s + rate_per_s * load_s * load_s / 2.0


def density(resident: Resident, now_s: float) -> float:
    """Waiting seconds saved per second and byte by keeping it. The lowest is evicted."""
    rate_per_s = resident.uses.rate_per_s(now_s)
    return rate_per_s * miss_cost_s(resident.load_s, rate_per_s) / max(resident.size_bytes, 1)


def residence_s(load_s: float) -> float:
    """How long a copy stays at least: a few load times, so that loading it was not in vain."""
    return min(RESIDENCE_LOADS * load_s, RESIDENCE_S_MAX)


def choose(sample: Iterable[Resident], now_s: float, policy: Policy) -> Resident | None:
    """The victim of a sample; None of an empty one. Those with requests in flight come last."""
    best: Resident | None = None
    best_key = (False, 0.0)
    for resident in sample:
        value = density(resident, now_s) if policy is Policy.RATE_COST else resident.uses.last_s
        key = (resident.in_flight > 0, value)
        if best is None or key < best_key:
            best, best_key = resident, key
    return best


def trim(victims: Sequence[tuple[Resident, float]], needed_bytes: int) -> list[tuple[Resident, float]]:
    """The victims (with their values) without those that turn out not to be needed for `needed_bytes`, the most
    valuable spared first."""
    surplus = sum(resident.size_bytes for resident, _ in victims) - needed_bytes
    kept = []
    for resident, value in sorted(victims, key=lambda victim: -victim[1]):
        if resident.size_bytes <= surplus:
            surplus -= resident.size_bytes
        else:
            kept.append((resident, value))
    return kept


class _Group:
    """Residents in uniformly random order, so that any run of neighbours is a random sample: one draw for 64.

    Inserting swaps with a random place (the inside-out shuffle of Fisher and Yates), removing fills the hole
    from the end; both keep the order uniform.
    """

    def __init__(self, rng: random.Random) -> None:
        self.members: list[Resident] = []
        self.size_bytes = 0
        self._rng = rng

    def add(self, resident: Resident) -> None:
        members = self.members
        place = int(self._rng.random() * (len(members) + 1))
        members.append(resident)
        if place < len(members) - 1:
            moved = members[place]
            members[-1], moved.index = moved, len(members) - 1
            members[place] = resident
        resident.index = place
        self.size_bytes += resident.size_bytes

    def remove(self, resident: Resident) -> None:
        last = self.members.pop()
        if last is not resident:
            self.members[resident.index], last.index = last, resident.index
        resident.index = -1
        self.size_bytes -= resident.size_bytes

    def sample(self, n: int) -> list[Resident]:
        members = self.members
        if len(members) <= n:
            return list(members)
        start = int(self._rng.random() * len(members))
        run = members[start : start + n]
        return run if len(run) == n else run + members[: n - len(run)]


class Residents:
    """The evictable copies. All calls take constant time but `sample`, which takes the sample's."""

    def __init__(self, rng: random.Random) -> None:
        self._probation = _Group(rng)
        self._protected = _Group(rng)

    def __len__(self) -> int:
        return len(self._probation.members) + len(self._protected.members)

    @property
    def size_bytes(self) -> int:
        return self._probation.size_bytes + self._protected.size_bytes

    @property
    def probation_bytes(self) -> int:
        return self._probation.size_bytes

    def add(self, resident: Resident) -> None:
        """Make it evictable. A model with two known uses skips probation."""
        resident.protected = resident.protected or resident.uses.count > 1
        self._group(resident).add(resident)

    def discard(self, resident: Resident) -> None:
        """It is not evictable any more (held, leaving). No error when it was not."""
        if resident.index >= 0:
            self._group(resident).remove(resident)

    def used(self, resident: Resident) -> None:
        """Call after its uses were recorded: the second use ends probation."""
        if resident.protected or resident.uses.count < 2:
            return
        evictable = resident.index >= 0
        self.discard(resident)
        resident.protected = True
        if evictable:
            self._protected.add(resident)

    def resize(self, resident: Resident, size_bytes: int) -> None:
        if resident.index >= 0:
            self._group(resident).size_bytes += size_bytes - resident.size_bytes
        resident.size_bytes = size_bytes

    def sample(self, policy: Policy, n: int = SAMPLE) -> list[Resident]:
        """Up to `n` candidates from the group whose turn it is; empty only when nothing is evictable."""
        if policy is Policy.LRU:
            share = len(self._probation.members) / max(len(self), 1)
            first = self._probation.sample(round(n * share))
            return first + self._protected.sample(n - len(first))
        if self._probation.size_bytes > PROBATION_SHARE * self.size_bytes or not self._protected.members:
            return self._probation.sample(n) or self._protected.sample(n)
        return self._protected.sample(n)

    def all(self) -> Iterable[Resident]:
        yield from self._probation.members
        yield from self._protected.members

    def _group(self, resident: Resident) -> _Group:
        return self._protected if resident.protected else self._probation
