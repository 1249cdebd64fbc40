"""Which copy to evict: the one whose bytes save the least loading.

    value density = priority x expected rate x cost of a miss / bytes
    cost of a miss = L + rate x L^2 / 2      (others arrive while it loads; L: its load seconds)

Of a spare copy (others serve the model without it) a miss costs a hop to another instance. Who is spare is for
`policy.copies` to say, so that not all go at once.

A newcomer is in probation until its second use. While probation holds more than a tenth of what is loaded,
victims come from there, so a sweep over all models churns only that.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from enum import StrEnum
from math import inf
from typing import Final, NamedTuple

from modelmesh.policy.rates import GAP_MIN_S, Uses

SAMPLE: Final = 64
PROBATION_SHARE: Final = 0.10
RESIDENCE_LOADS: Final = 3.0
RESIDENCE_S_MAX: Final = 5.0
_LOAD_S_MIN: Final = 1e-3
"""A load that costs nothing would make every model worth nothing, and the choice blind."""
HOP_S: Final = 0.5e-3
"""What a request waits longer when another instance serves it."""


class Policy(StrEnum):
    """What decides now: `LRU` when the shadow showed it to be better."""

    RATE_COST = "rate-cost"
    LRU = "lru"


class Resident:
    """A loaded copy as eviction sees it. `index` is its place among the residents, -1 when it is not evictable."""

    __slots__ = (
        "in_flight", "index", "load_s", "model", "priority", "protected", "since_s", "size_bytes", "spare", "uses",
    )  # fmt: skip

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
        self.priority = 1.0
        """How much waiting for it counts."""
        self.spare = False
        """Other instances serve the model without this copy."""
        self.index = -1

    @property
    def absence_s(self) -> float:
        """How long a request waits because this copy is not there, all else idle."""
        return HOP_S if self.spare else max(self.load_s, _LOAD_S_MIN)


def miss_cost_s(load_s: float, rate_per_s: float) -> float:
    """Seconds waited in all because one request found the model cold."""
    load_s = max(load_s, _LOAD_S_MIN)
    return load_s + rate_per_s * load_s * load_s / 2.0


def density(resident: Resident, now_s: float) -> float:
    """Waiting seconds saved per second and byte by keeping it. The lowest is evicted."""
    rate_per_s = resident.uses.rate_per_s(now_s)
    cost_s = resident.absence_s + rate_per_s * resident.absence_s * resident.absence_s / 2.0
    return resident.priority * rate_per_s * cost_s / max(resident.size_bytes, 1)


def residence_s(load_s: float) -> float:
    """How long a copy stays at least: a few load times, so that loading it was not in vain."""
    return min(RESIDENCE_LOADS * load_s, RESIDENCE_S_MAX)


class Sample(NamedTuple):
    """Candidates with what keeping each is worth (in LRU: when it was used last); the least goes first."""

    values: list[float]
    residents: list[Resident]


def choose(
    sample: Sample, may_go: Callable[[Resident], bool] = lambda resident: True
) -> tuple[Resident, float] | None:
    """The least valuable candidate that `may_go`, with its value; one with requests in flight only when there is no other.
    None when none may go."""
    values, residents = sample
    if not residents:
        return None
    least = min(values)
    first = residents[values.index(least)]
    if may_go(first) and not first.in_flight:
        return first, least
    best: tuple[Resident, float] | None = None
    for resident, value in zip(residents, values, strict=True):
        if may_go(resident) and (
            best is None or (resident.in_flight > 0, value) < (best[0].in_flight > 0, best[1])
        ):
            best = resident, value
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
    from the end; both keep the order uniform. What a value is computed from stands in columns beside the
    members: following 64 random objects would cost more in cache misses than all the arithmetic.
    """

    def __init__(self, rng: random.Random) -> None:
        self.members: list[Resident] = []
        self.size_bytes = 0
        self._rng = rng
        self._last_s = array("d")
        self._gap_s = array("d")
        """Negative: used once, so no gap is known."""
        self._cost = array("d")
        """Seconds of absence per byte, times the priority."""
        self._cost_growth = array("d")
        """Seconds of absence squared, halved, per byte, times the priority. Times the rate: what others add who wait too."""

    def add(self, resident: Resident) -> None:
        members, end = self.members, len(self.members)
        place = int(self._rng.random() * (end + 1))
        members.append(resident)
        for column in self._columns():
            column.append(0.0)
        if place < end:
            self._move(place, end)
        members[place] = resident
        resident.index = place
        self.size_bytes += resident.size_bytes
        self.refresh(resident)

    def remove(self, resident: Resident) -> None:
        end = len(self.members) - 1
        if resident.index < end:
            self._move(end, resident.index)
        self.members.pop()
        for column in self._columns():
            column.pop()
        resident.index = -1
        self.size_bytes -= resident.size_bytes

    def refresh(self, resident: Resident) -> None:
        """Anything its value depends on changed."""
        index, absence_s = resident.index, resident.absence_s
        weight = resident.priority / max(resident.size_bytes, 1)
        self.touch(resident)
        self._cost[index] = weight * absence_s
        self._cost_growth[index] = weight * absence_s * absence_s / 2.0

    def touch(self, resident: Resident) -> None:
        """Its uses changed."""
        index, uses = resident.index, resident.uses
        self._last_s[index] = uses.last_s if uses.count else -inf
        self._gap_s[index] = uses.gap_s if uses.count != 1 else -1.0

    def sample(self, n: int, policy: Policy, now_s: float) -> Sample:
        length = len(self.members)
        if length <= n:
            return self._run(0, length, policy, now_s)
        start = int(self._rng.random() * length)
        run = self._run(start, min(start + n, length), policy, now_s)
        return run if len(run.values) == n else _joined(run, self._run(0, n - len(run.values), policy, now_s))

    def _run(self, start: int, end: int, policy: Policy, now_s: float) -> Sample:
        residents = self.members[start:end]
        if policy is Policy.LRU:
            return Sample(self._last_s[start:end].tolist(), residents)
        values = []
        columns = (self._last_s, self._gap_s, self._cost, self._cost_growth)
        for last_s, gap_s, cost, growth in zip(*[column[start:end] for column in columns], strict=True):
            idle_s = now_s - last_s
            if gap_s < idle_s:
                gap_s = 2.0 * idle_s if gap_s < 0.0 else idle_s
            rate_per_s = 1.0 / gap_s if gap_s > GAP_MIN_S else 1.0 / GAP_MIN_S
            values.append(rate_per_s * (cost + rate_per_s * growth))
        return Sample(values, residents)

    def _move(self, source: int, target: int) -> None:
        moved = self.members[source]
        self.members[target], moved.index = moved, target
        for column in self._columns():
            column[target] = column[source]

    def _columns(self) -> tuple[array[float], ...]:
        return self._last_s, self._gap_s, self._cost, self._cost_growth


def _joined(first: Sample, second: Sample) -> Sample:
    return Sample(first.values + second.values, first.residents + second.residents)


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

    def refresh(self, resident: Resident) -> None:
        """Call after anything its value depends on changed otherwise than by a use while it was loaded."""
        if resident.index >= 0:
            self._group(resident).refresh(resident)

    def used(self, resident: Resident) -> None:
        """Call after a use of the loaded copy was recorded: the second use ends probation."""
        if resident.protected or resident.uses.count < 2:
            if resident.index >= 0:
                self._group(resident).touch(resident)
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
        self.refresh(resident)

    def sample(self, policy: Policy, now_s: float, n: int = SAMPLE) -> Sample:
        """Up to `n` candidates from the group whose turn it is; empty only when nothing is evictable."""
        if policy is Policy.LRU:
            share = len(self._probation.members) / max(len(self), 1)
            first = self._probation.sample(round(n * share), policy, now_s)
            return _joined(first, self._protected.sample(n - len(first.values), policy, now_s))
        over = self._probation.size_bytes > PROBATION_SHARE * self.size_bytes
        group = self._probation if over or not self._protected.members else self._protected
        return (group if group.members else self._protected).sample(n, policy, now_s)

    def first(self, n: int, policy: Policy, now_s: float) -> Sample:
        """`n` candidates of both groups without drawing: for when no sample held one that may go."""
        residents = self._probation.members[:n]
        residents += self._protected.members[: n - len(residents)]
        if policy is Policy.LRU:
            return Sample([resident.uses.last_s for resident in residents], residents)
        return Sample([density(resident, now_s) for resident in residents], residents)

    def _group(self, resident: Resident) -> _Group:
        return self._protected if resident.protected else self._probation
