"""How this instance is doing, in the terms others place copies by. Measured once a second, from what was counted since."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from modelmesh.clock import Clock
from modelmesh.mesh.cache.copies import Copies
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.cache.usage import UsageReader
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
    """`draining` says whether the instance goes away."""

    def __init__(
        self,
        sites: Sites,
        copies: Copies,
        usage: UsageReader,
        clock: Clock,
        *,
        draining: Callable[[], bool],
    ) -> None:
        self._sites = sites
        self._copies = copies
        self._usage = usage
        self._clock = clock
        self._draining = draining
        self._cordoned = self._gave_up = False
        self._prepared = True
        self._measured_s = clock.monotonic_s()
        self._requests = self._busy_s = 0.0
        self._rate_per_s = self._busyness = 0.0
        self._known: Load | None = None
        self._known_s = 0.0

    @property
    def cordoned(self) -> bool:
        """Nothing new is to be placed here."""
        return self._cordoned

    def cordon(self, cordoned: bool) -> None:
        """Until this process ends, or somebody takes it back."""
        self._cordoned, self._known = cordoned, None

    def prepare(self, prepared: bool) -> None:
        """Nothing is to be placed here before it is prepared."""
        self._prepared, self._known = prepared, None

    def give_up(self) -> None:
        """The others were told that nothing is held here any more, whatever is still in memory."""
        self._gave_up, self._known = True, None

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
            # One that takes longer than ever (its framework is imported first, the storage is slow) may take as long again.
            running_s = [one.left_s or one.ran_s for one in site.loads.running()]
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
            cordoned=self._cordoned or not self._prepared,
            copies=0 if self._gave_up else self._copies.n_loaded,
            loads_running=sum(site.loads.n_running for site in self._sites),
            loads_queued=sum(site.loads.n_queued for site in self._sites),
            loads_total=sum(site.loads.total for site in self._sites),
            evictions_total=sum(site.evictions.total for site in self._sites),
        )

    def _measure(self, now_s: float) -> None:
        passed_s = now_s - self._measured_s
        requests, busy_s = self._usage.requests_total, self._usage.busy_s
        rate_per_s = (requests - self._requests) / passed_s
        busyness = min((busy_s - self._busy_s) / passed_s / max(self._copies.routes.n_targets, 1), 1.0)
        self._rate_per_s += SMOOTHING * (rate_per_s - self._rate_per_s)
        self._busyness += SMOOTHING * (busyness - self._busyness)
        self._measured_s, self._requests, self._busy_s = now_s, requests, busy_s
