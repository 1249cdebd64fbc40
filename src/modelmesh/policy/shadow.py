"""Two caches that hold nothing: what rate-cost and LRU would have missed on the uses this instance sees.

LRU takes over when it would have spent clearly fewer load-seconds lately, and gives back when it would not, so
eviction is never worse than LRU for long. Above 4,096 models one in 16 is followed, in a sixteenth of the memory.
"""

from __future__ import annotations

import random
import zlib
from collections import OrderedDict
from typing import Final

from modelmesh.policy.eviction import Policy, Resident, Residents, choose
from modelmesh.policy.rates import Uses

ALL_BELOW: Final = 4096
ONE_IN: Final = 16
MEMORY_MISSES: Final = 512
"""Misses after which a past difference counts for 1/e."""
EVIDENCE_MISSES: Final = 64
TAKE_OVER: Final = 0.90
"""LRU decides once its load-seconds fall below this share of rate-cost's."""
GIVE_BACK: Final = 1.00
"""Rate-cost decides again once LRU's load-seconds rise above this share of its own."""


class LruCache:
    """Bytes of models under least recently used."""

    def __init__(self, capacity_bytes: float) -> None:
        self.capacity_bytes = capacity_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._used_bytes = 0

    def access(self, model: str, size_bytes: int) -> bool:
        """Use a model; True when it was there. One larger than the capacity never is."""
        hit = model in self._sizes
        if hit:
            self._used_bytes -= self._sizes[model]
        self._sizes[model] = size_bytes
        self._sizes.move_to_end(model)
        self._used_bytes += size_bytes
        while self._used_bytes > self.capacity_bytes and self._sizes:
            _, freed_bytes = self._sizes.popitem(last=False)
            self._used_bytes -= freed_bytes
        return hit

    def __len__(self) -> int:
        return len(self._sizes)


class RateCostCache:
    """Bytes of models under rate-cost. `uses` is the models' own account, which outlives their eviction."""

    def __init__(self, capacity_bytes: float, rng: random.Random) -> None:
        self.capacity_bytes = capacity_bytes
        self.policy = Policy.RATE_COST
        self._residents = Residents(rng)
        self._copies: dict[str, Resident] = {}

    def access(self, model: str, size_bytes: int, load_s: float, uses: Uses, now_s: float) -> bool:
        """Use a model, whose use at `now_s` is recorded in `uses`; True when it was there."""
        copy = self._copies.get(model)
        if copy is not None:
            if copy.size_bytes != size_bytes or copy.load_s != load_s:
                copy.load_s = load_s
                self._residents.resize(copy, size_bytes)
            self._residents.used(copy)
            self._make_room(0, now_s)
            return True
        if size_bytes > self.capacity_bytes:
            return False
        self._make_room(size_bytes, now_s)
        copy = self._copies[model] = Resident(model, size_bytes, load_s, uses, now_s)
        self._residents.add(copy)
        return False

    @property
    def size_bytes(self) -> int:
        return self._residents.size_bytes

    def __len__(self) -> int:
        return len(self._copies)

    def _make_room(self, needed_bytes: int, now_s: float) -> None:
        while self._residents.size_bytes + needed_bytes > self.capacity_bytes:
            chosen = choose(self._residents.sample(self.policy, now_s))
            if chosen is None:
                return
            victim, _ = chosen
            self._residents.discard(victim)
            del self._copies[victim.model]


class Shadow:
    """Feed it every use in order of time; ask it for the `policy`."""

    def __init__(self, rng: random.Random) -> None:
        self.policy = Policy.RATE_COST
        self.lru_load_s = 0.0
        """What LRU would have spent on loading, lately; `rate_cost_load_s` likewise."""
        self.rate_cost_load_s = 0.0
        self._misses = 0.0
        self._rng = rng
        self._sampling = False
        self._capacity_bytes = 0
        self._start_caches()

    def resize(self, capacity_bytes: int, models: int) -> None:
        """Follow the instance's capacity and its number of registered models."""
        sampling = models > ALL_BELOW if not self._sampling else models > ALL_BELOW // 2
        restart = sampling != self._sampling
        self._sampling, self._capacity_bytes = sampling, capacity_bytes
        if restart:
            self._start_caches()
        self._lru.capacity_bytes = self._rate_cost.capacity_bytes = self._share_bytes

    def used(self, model: str, size_bytes: int, load_s: float, uses: Uses, now_s: float) -> bool:
        """A use at `now_s`, recorded in `uses` already. True when the policy changed by it."""
        if self._sampling and zlib.crc32(model.encode()) % ONE_IN:
            return False
        lru_hit = self._lru.access(model, size_bytes)
        rate_cost_hit = self._rate_cost.access(model, size_bytes, load_s, uses, now_s)
        if lru_hit and rate_cost_hit:
            return False
        keep = 1.0 - 1.0 / MEMORY_MISSES
        self._misses = self._misses * keep + 1.0
        self.lru_load_s = self.lru_load_s * keep + (0.0 if lru_hit else load_s)
        self.rate_cost_load_s = self.rate_cost_load_s * keep + (0.0 if rate_cost_hit else load_s)
        return self._judge()

    def _judge(self) -> bool:
        if self._misses < EVIDENCE_MISSES:
            return False
        before = self.policy
        if before is Policy.RATE_COST and self.lru_load_s < TAKE_OVER * self.rate_cost_load_s:
            self.policy = Policy.LRU
        elif before is Policy.LRU and self.lru_load_s > GIVE_BACK * self.rate_cost_load_s:
            self.policy = Policy.RATE_COST
        return self.policy is not before

    @property
    def _share_bytes(self) -> float:
        return self._capacity_bytes / ONE_IN if self._sampling else self._capacity_bytes

    def _start_caches(self) -> None:
        self._lru = LruCache(self._share_bytes)
        self._rate_cost = RateCostCache(self._share_bytes, self._rng)
