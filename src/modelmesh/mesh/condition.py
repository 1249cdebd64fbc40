"""How this instance is doing, in the terms others place copies by. Measured once a second, from what was counted since."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from modelmesh.clock import Clock
from modelmesh.mesh.sites import Sites
from modelmesh.mesh.usage import UsageReader
from modelmesh.peers.protocol import Load
from modelmesh.policy.eviction import Policy
from modelmesh.policy.urgency import ready_in_s

MEASURED_S: Final = 1.0
FRESH_S: Final = 0.01
"""A burst of placements asks often; what was placed since is reckoned by whoever places."""
FULL_SHARE: Final = 0.02
"""With less than this share of the memory free, the next load evicts: what that costs is the price."""
SMOOTHING: Final = 0.5
"""Of a new second in the rate and the busyness."""


class Condition:
    """`servers` says how many model servers there are, `draining` whether the instance goes away."""

    def __init__(
        self,
        sites: Sites,
        usage: UsageReader,
        clock: Clock,
        *,
        servers: Callable[[], int],
        draining: Callable[[], bool],
    ) -> None:
        self._sites = sites
        self._usage = usage
        self._clock = clock
        self._servers = servers
        self._draining = draining
        self._measured_s = clock.monotonic_s()
        self._requests = self._busy_s = 0.0
        self._rate_per_s = self._busyness = 0.0
        self._known: Load | None = None
        self._known_s = 0.0

    def load(self) -> Load:
        """As of now, give or take `FRESH_S`; rates as of the last full second."""
        now_s, draining = self._clock.monotonic_s(), self._draining()
        known = self._known
        if known is None or now_s - self._known_s >= FRESH_S or known.draining is not draining:
            known, self._known_s = self._look(now_s, draining), now_s
            self._known = known
        return known

    def _look(self, now_s: float, draining: bool) -> Load:
        if now_s - self._measured_s >= MEASURED_S:
            self._measure(now_s)
        capacity_bytes = free_bytes = 0
        prices, queues = [], []
        for site in self._sites:
            ledger = site.budget.ledger
            usable_bytes = ledger.capacity_bytes - ledger.unattributed_bytes
            free = ledger.free_bytes + site.evictions.incoming_bytes
            free -= sum(copy.needed_bytes for copy in site.loads.waiting())
            capacity_bytes += usable_bytes
            free_bytes += free
            if free < FULL_SHARE * usable_bytes:
                worth = site.budget.residents.sample(Policy.RATE_COST, now_s).values
                prices.append(min(worth, default=inf))
            running_s = [left_s for _, left_s in site.loads.running()]
            queued_s = [copy.load_s for copy in site.loads.waiting()]
            queues.append(ready_in_s([*queued_s, 0.0], max(site.loads.slots, 1), running_s)[-1])
        return Load(
            capacity_bytes=capacity_bytes,
            free_bytes=free_bytes,
            price=min(prices, default=0.0) if len(prices) == len(queues) else 0.0,
            rate_per_s=self._rate_per_s,
            busyness=self._busyness,
            load_queue_s=min(queues, default=0.0),
            draining=draining,
        )

    def _measure(self, now_s: float) -> None:
        passed_s = now_s - self._measured_s
        requests, busy_s = self._usage.requests_total, self._usage.busy_s
        rate_per_s = (requests - self._requests) / passed_s
        busyness = min((busy_s - self._busy_s) / passed_s / max(self._servers(), 1), 1.0)
        self._rate_per_s += SMOOTHING * (rate_per_s - self._rate_per_s)
        self._busyness += SMOOTHING * (busyness - self._busyness)
        self._measured_s, self._requests, self._busy_s = now_s, requests, busy_s
