"""An instance as a replay has it: memory, load slots, the queue for them, and how busy it was lately."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp
from typing import Final

from modelmesh.policy.urgency import Order, Why, order
from modelmesh.simulate.evictors import Evictor

BUSY_S: Final = 10.0
"""Time constant of an instance's busyness."""


@dataclass(slots=True, eq=False)
class Wanting:
    """A model that requests wait for and whose load has not begun."""

    model: int
    since_s: float
    index: int
    """Of the last request that waits."""
    counted: bool
    requests: int = 1
    arrivals_s: list[float] = field(default_factory=list)
    """Of the requests that count."""

    def order(self, load_s: float) -> Order:
        return order(Why.URGENT, self.requests, load_s, self.since_s)


class Instance:
    """Memory, load slots and queue of one instance."""

    def __init__(self, name: str, capacity_bytes: int, loads: int, evictor: Evictor) -> None:
        self.name = name
        self.capacity_bytes = self.free_bytes = capacity_bytes
        self.evictor = evictor
        self.slots_s = [0.0] * loads
        """When each load slot is free: a heap."""
        self.queue: list[tuple[Order, int, Wanting]] = []
        """A heap; the number keeps equal ones in order."""
        self.queued_load_s = 0.0
        self._busy_s = 0.0
        self._busy_at_s = 0.0

    def queue_s(self, now_s: float) -> float:
        """How long one more load would wait for a slot."""
        return max(self.slots_s[0] - now_s, 0.0) + self.queued_load_s / len(self.slots_s)

    def work(self, service_s: float, at_s: float) -> None:
        if service_s:
            self._busy_s = self._busy_s * self._decay(at_s) + service_s
            self._busy_at_s = max(at_s, self._busy_at_s)

    def busyness(self, now_s: float, slots: int) -> float:
        """Share of `slots` in use lately, 1 at most."""
        return min(self._busy_s * self._decay(now_s) / BUSY_S / slots, 1.0)

    def _decay(self, now_s: float) -> float:
        return exp(min(self._busy_at_s - now_s, 0.0) / BUSY_S)
