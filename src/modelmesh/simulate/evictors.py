"""Who goes when room is needed: the policies as they serve, and those they are measured against.

An evictor belongs to one instance at one size of memory. Models are numbers. Uses come as the mesh reads them: counted per
model, in order of the last use, before each eviction.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from math import inf, log2
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from modelmesh.policy.eviction import SAMPLE, Policy, Resident, Residents, choose, residence_s
from modelmesh.policy.rates import Uses
from modelmesh.policy.shadow import Shadow
from modelmesh.policy.thrash import Thrash
from modelmesh.simulate.trace import Trace

PUBLISH_S: Final = 1.0
"""How old what an instance published of itself may be."""
_ATTEMPTS: Final = 4
_SCAN: Final = 1024
_LOAD_S_MIN: Final = 1e-3


class Evictor(Protocol):
    """What is loaded in one instance, and in which order it goes."""

    def loaded(self, model: int, index: int, at_s: float, ready_s: float) -> None:
        """The request at `index` found it cold at `at_s`; it is loaded at `ready_s`."""

    def used(self, model: int, index: int, at_s: float, uses: int) -> None:
        """`uses` of a loaded model since the last call, the last by the request at `index`; 0 when all of them waited for its
        load."""

    def victim(self, now_s: float) -> tuple[int, float] | None:
        """The next to go and when it may, taken out; None when nothing is loaded. What is loading or in use stays."""

    def price(self, now_s: float) -> float:
        """What the instance would give up for room; comparable among evictors of one kind, the least is the best."""


class Known:
    """What is known of the models over all instances: uses outlive evictions, busyness outlives nothing."""

    def __init__(self, trace: Trace) -> None:
        self.names = trace.names
        self.size_bytes: list[int] = trace.size_bytes.tolist()
        self.load_s: list[float] = trace.load_s.tolist()
        self.service_s: list[float] = trace.service_s.tolist()
        self.uses: dict[int, Uses] = {}
        self.free_s: list[float] = [0.0] * trace.models
        """Until when the model is loading or serving."""

    def history(self, model: int) -> Uses:
        uses = self.uses.get(model)
        if uses is None:
            uses = self.uses[model] = Uses()
        return uses


class RateCost:
    """Rate-cost with probation, minimum residence, and the shadow that lets LRU take over: as the mesh serves."""

    def __init__(self, known: Known, capacity_bytes: int, rng: random.Random) -> None:
        self._known = known
        self._residents = Residents(rng)
        self._copies: dict[int, Resident] = {}
        self._numbers: dict[str, int] = {}
        self._shadow = Shadow(rng)
        self._shadow.resize(capacity_bytes, len(known.names))
        self._price = 0.0
        self._priced_s = -inf
        self.thrash = Thrash()
        self.lru_uses = 0

    def loaded(self, model: int, index: int, at_s: float, ready_s: float) -> None:
        known, uses = self._known, self._known.history(model)
        uses.record(at_s)
        name, size_bytes, load_s = known.names[model], known.size_bytes[model], known.load_s[model]
        copy = self._copies[model] = Resident(name, size_bytes, load_s, uses, ready_s)
        self._numbers[name] = model
        self._residents.add(copy)
        self._shadow.used(name, size_bytes, load_s, uses, at_s)
        self.thrash.loaded(name, size_bytes, at_s)
        self.lru_uses += self._shadow.policy is Policy.LRU

    def used(self, model: int, index: int, at_s: float, uses: int) -> None:
        copy = self._copies.get(model)
        if copy is None or not uses:
            return
        copy.uses.record(at_s, uses)
        self._residents.used(copy)
        self._shadow.used(copy.model, copy.size_bytes, copy.load_s, copy.uses, at_s)
        if self._shadow.policy is Policy.LRU:
            self.lru_uses += uses

    def victim(self, now_s: float) -> tuple[int, float] | None:
        residents, policy = self._residents, self._shadow.policy

        def may_go(copy: Resident) -> bool:
            return self._settled_s(copy) <= now_s

        chosen, at_s = None, now_s
        for _ in range(_ATTEMPTS if len(residents) > SAMPLE else 1):
            chosen = choose(residents.sample(policy, now_s), may_go)
            if chosen is not None:
                break
        if chosen is None:
            scanned = residents.first(_SCAN, policy, now_s)
            chosen = choose(scanned, may_go)
            if chosen is None and scanned.residents:
                first = min(scanned.residents, key=self._settled_s)
                chosen, at_s = (first, scanned.values[scanned.residents.index(first)]), self._settled_s(first)
        if chosen is None:
            return None
        copy, _ = chosen
        residents.discard(copy)
        self.thrash.evicted(copy.model, now_s)
        model = self._numbers.pop(copy.model)
        del self._copies[model]
        return model, at_s

    def price(self, now_s: float) -> float:
        """The value density of what would go next, as instances publish it: looked up once in `PUBLISH_S`."""
        if now_s - self._priced_s >= PUBLISH_S:
            values = self._residents.sample(Policy.RATE_COST, now_s).values
            self._price, self._priced_s = min(values, default=0.0), now_s
        return self._price

    def _settled_s(self, copy: Resident) -> float:
        return max(copy.since_s + residence_s(copy.load_s), self._known.free_s[self._numbers[copy.model]])


class Lru:
    """Least recently used, exactly."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._last_s: OrderedDict[int, float] = OrderedDict()

    def loaded(self, model: int, index: int, at_s: float, ready_s: float) -> None:
        self._last_s[model] = at_s

    def used(self, model: int, index: int, at_s: float, uses: int) -> None:
        if model in self._last_s:
            self._last_s[model] = at_s
            self._last_s.move_to_end(model)

    def victim(self, now_s: float) -> tuple[int, float] | None:
        if not self._last_s:
            return None
        free_s = self._known.free_s
        model = next((model for model in self._last_s if free_s[model] <= now_s), None)
        if model is None:
            model = min(self._last_s, key=free_s.__getitem__)
        del self._last_s[model]
        return model, max(free_s[model], now_s)

    def price(self, now_s: float) -> float:
        """The younger what it would evict, the dearer: the placement of the predecessor."""
        return -(now_s - next(iter(self._last_s.values()), -inf))


class Belady:
    """Knows the future: the one that saves the least load time per byte and request until it is used again.

    Exactly Belady's rule (the farthest next use) where all sizes and load times are equal, which no policy beats. For others
    finding the best is NP-hard, and this is the usual greedy rule: farthest next use x bytes / load time, looked for among the
    farthest of each class of bytes / load time (a quarter of a doubling wide)."""

    def __init__(self, known: Known, next_use: NDArray[np.int64]) -> None:
        self._known = known
        self._next_use = next_use
        self._next: dict[int, int] = {}
        self._weight = [
            max(size_bytes, 1) / max(load_s, _LOAD_S_MIN)
            for size_bytes, load_s in zip(known.size_bytes, known.load_s, strict=True)
        ]
        self._class = [round(4.0 * log2(weight)) for weight in self._weight]
        self._heaps: dict[int, list[tuple[int, int]]] = {}
        self._index = 0

    def loaded(self, model: int, index: int, at_s: float, ready_s: float) -> None:
        self._follow(model, index)

    def used(self, model: int, index: int, at_s: float, uses: int) -> None:
        if model in self._next:
            self._follow(model, index)

    def victim(self, now_s: float) -> tuple[int, float] | None:
        free_s = self._known.free_s
        best, best_worth = None, -1.0
        for heap in self._heaps.values():
            found = self._farthest(heap, now_s)
            if found is None:
                continue
            worth = (-found[0] - self._index) * self._weight[found[1]]
            if worth > best_worth:
                best, best_worth = found[1], worth
        if best is None:
            best = min(self._next, key=free_s.__getitem__, default=None)
        if best is None:
            return None
        del self._next[best]
        return best, max(free_s[best], now_s)

    def price(self, now_s: float) -> float:
        return 0.0

    def _follow(self, model: int, index: int) -> None:
        following = self._next[model] = int(self._next_use[index])
        self._index = max(self._index, index)
        heap = self._heaps.setdefault(self._class[model], [])
        heappush(heap, (-following, model))
        if len(heap) > 64 + 4 * len(self._next):
            heap[:] = [entry for entry in heap if self._next.get(entry[1]) == -entry[0]]
            heapify(heap)

    def _farthest(self, heap: list[tuple[int, int]], now_s: float) -> tuple[int, int] | None:
        """The entry of the farthest next use that may go; entries of the past are dropped on the way."""
        kept: list[tuple[int, int]] = []
        found = None
        while heap:
            entry = heap[0]
            if self._next.get(entry[1]) != -entry[0]:
                heappop(heap)
            elif self._known.free_s[entry[1]] > now_s:
                kept.append(heappop(heap))
            else:
                found = entry
                break
        for entry in kept:
            heappush(heap, entry)
        return found
