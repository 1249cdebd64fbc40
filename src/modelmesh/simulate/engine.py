"""Replaying a trace: a warm request costs one comparison, everything else happens at a miss.

What is modelled: memory per instance, load slots and the queue for them by urgency, requests that wait for one load together,
minimum residence, uses read in batches as the mesh reads them, placement of each load. What is not: queues of requests
at busy models, second copies of hot ones, refusals and deadlines (all wait), failures.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from itertools import pairwise
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelmesh.policy.placement import Candidate, Refusal, Wanted, place
from modelmesh.simulate.evictors import Belady, Evictor, Known, Lru, RateCost
from modelmesh.simulate.instance import Instance, Wanting
from modelmesh.simulate.outcome import Outcome, Rule, Setup, quantile
from modelmesh.simulate.trace import Trace

CHUNK: Final = 1 << 16
READ_S: Final = 0.25
"""Uses are read at least this often, as in the mesh."""
THRASH_LOOK_S: Final = 10.0


class Replay:
    """One trace on one setup; `run` it once."""

    def __init__(self, trace: Trace, setup: Setup, next_use: NDArray[np.int64] | None = None) -> None:
        """`next_use` is that of the trace, to spare computing it for each of several setups."""
        self._trace, self._setup = trace, setup
        self._known = Known(trace)
        pooled = setup.rule is Rule.OPTIMUM
        n = 1 if pooled else setup.instances
        if pooled and next_use is None:
            next_use = trace.next_use()
        capacity_bytes = setup.memory_bytes // n
        self._largest_bytes = setup.memory_bytes // setup.instances
        self._instances = [
            Instance(
                f"instance-{number}",
                capacity_bytes,
                setup.loads * setup.instances // n,
                self._evictor(number, capacity_bytes, next_use),
            )
            for number in range(n)
        ]
        self._several = n > 1
        self._numbers = {instance.name: number for number, instance in enumerate(self._instances)}
        self._ready_s: list[float] = [inf] * trace.models
        """When a model is or was loaded; infinite while no load of it has begun."""
        self._home = [0] * trace.models
        self._wanted: dict[int, Wanting] = {}
        self._resumed: dict[int, int] = {}
        """Requests not read yet that wait for the load: together they are one use, counted when it began."""
        self._base = 0
        self._times: list[float] = []
        self._models: list[int] = []
        self._unread = 0
        self._next_start_s = inf
        """When the next queued load can begin."""
        self._queued = 0
        self._waits = array("d")
        self._seen = bytearray(trace.models)
        self._next_look_s = 0.0
        self._looks = self._thrashing = 0
        self._joined = self._misses = self._too_large = self._first_uses = 0
        self._load_s = 0.0
        self._counting = False

    def run(self, progress: Callable[[int], None] = lambda requests: None) -> Outcome:
        """Replay it all. `progress` is told of so many more requests done."""
        trace = self._trace
        n, start = len(trace), int(len(trace) * self._setup.warmup)
        edges = sorted({0, start, n, *range(0, n, CHUNK)})
        for begin, end in pairwise(edges):
            self._counting = begin >= start
            self._base, self._unread = begin, 0
            self._times = trace.at_s[begin:end].tolist()
            self._models = trace.model[begin:end].tolist()
            self._chunk()
            progress(end - begin)
        self._start_queued(inf, len(self._models))
        return self._outcome(n - start, trace.span_s - float(trace.at_s[start]) if start < n else 0.0)

    def _chunk(self) -> None:
        ready_s, times = self._ready_s, self._times
        for index, model in enumerate(self._models):
            now_s = times[index]
            if self._next_start_s <= now_s:
                self._start_queued(now_s, index)
            if ready_s[model] > now_s:
                self._cold(model, index, now_s)
        self._read(len(times))

    # --- uses -------------------------------------------------------------------------------------------------------

    def _read(self, end: int) -> None:
        """Tell the evictors of the requests before `end`, in batches of `READ_S` at most."""
        times, models, base = self._times, self._models, self._base
        start = self._unread
        self._unread = end
        while start < end:
            stop = bisect_right(times, times[start] + READ_S, start, end)
            if stop == start + 1:
                self._used(models[start], base + start, times[start], 1)
            else:
                batch = models[start:stop]
                counts = Counter(batch)
                last = dict(zip(batch, range(start, stop), strict=True))
                for index in sorted(last.values()):
                    model = models[index]
                    self._used(model, base + index, times[index], counts[model])
            start = stop

    def _used(self, model: int, index: int, at_s: float, requests: int) -> None:
        if self._ready_s[model] == inf:
            return
        known = self._known
        instance = self._instances[self._home[model]]
        service_s = known.service_s[model]
        if service_s:
            if self._several:
                instance.work(requests * service_s, at_s)
            known.free_s[model] = max(known.free_s[model], at_s + service_s)
        if model in self._resumed:
            resumed = self._resumed.pop(model)
            if resumed > requests:
                self._resumed[model] = resumed - requests
            requests = max(requests - resumed, 0)
        instance.evictor.used(model, index, at_s, requests)

    # --- misses -----------------------------------------------------------------------------------------------------

    def _cold(self, model: int, index: int, now_s: float) -> None:
        """A request whose model is not loaded yet."""
        if self._ready_s[model] < inf:
            self._resumed[model] = self._resumed.get(model, 0) + 1
            self._joined += self._counting
            if self._counting:
                self._waits.append(self._ready_s[model] - now_s)
            return
        wanting = self._wanted.get(model)
        if wanting is not None:
            self._join(wanting, index, now_s)
            return
        known = self._known
        if known.size_bytes[model] > self._largest_bytes:
            self._too_large += self._counting
            return
        wanting = Wanting(model, now_s, self._base + index, self._counting)
        if self._counting:
            wanting.arrivals_s.append(now_s)
            self._misses += 1
            self._first_uses += not self._seen[model]
        self._seen[model] = 1
        number = self._home[model] = self._place(model, now_s)
        instance = self._instances[number]
        if not instance.queue and instance.slots_s[0] <= now_s:
            self._start(instance, wanting, now_s, index)
            self._resumed[model] = 1
            return
        self._wanted[model] = wanting
        instance.queued_load_s += known.load_s[model]
        self._push(instance, wanting)

    def _join(self, wanting: Wanting, index: int, now_s: float) -> None:
        """One more waits for a queued load, which makes it more urgent: told each time the number has doubled."""
        wanting.requests += 1
        wanting.index = self._base + index
        if self._counting:
            wanting.arrivals_s.append(now_s)
            self._joined += 1
        if wanting.requests & (wanting.requests - 1) == 0:
            self._push(self._instances[self._home[wanting.model]], wanting)

    def _push(self, instance: Instance, wanting: Wanting) -> None:
        self._queued += 1
        heappush(instance.queue, (wanting.order(self._known.load_s[wanting.model]), self._queued, wanting))
        self._next_start_s = min(self._next_start_s, instance.slots_s[0])

    def _start_queued(self, now_s: float, index: int) -> None:
        """Begin the queued loads whose slot became free up to `now_s`, in order of time."""
        while self._next_start_s <= now_s:
            instance = min(
                (instance for instance in self._instances if instance.queue),
                key=lambda instance: instance.slots_s[0],
                default=None,
            )
            if instance is None:
                self._next_start_s = inf
                return
            _, _, wanting = heappop(instance.queue)
            model = wanting.model
            if self._wanted.get(model) is wanting:
                del self._wanted[model]
                instance.queued_load_s -= self._known.load_s[model]
                self._start(instance, wanting, instance.slots_s[0], index)
            self._next_start_s = min(
                (instance.slots_s[0] for instance in self._instances if instance.queue), default=inf
            )

    def _start(self, instance: Instance, wanting: Wanting, at_s: float, index: int) -> None:
        """Begin a load; the chunk's requests before `index` are in the past."""
        self._read(index)
        known, model = self._known, wanting.model
        size_bytes, load_s = known.size_bytes[model], known.load_s[model]
        ready_s = self._make_room(instance, size_bytes, at_s) + load_s
        heapreplace(instance.slots_s, ready_s)
        instance.free_bytes -= size_bytes
        self._ready_s[model] = ready_s
        known.free_s[model] = ready_s + known.service_s[model]
        instance.evictor.loaded(model, wanting.index, at_s, ready_s)
        self._waits.extend([ready_s - arrived_s for arrived_s in wanting.arrivals_s])
        if wanting.counted:
            self._load_s += load_s
            self._look_for_thrashing(at_s)

    def _make_room(self, instance: Instance, size_bytes: int, now_s: float) -> float:
        """Evict until the size fits; when the last of the victims may go."""
        room_s = now_s
        while instance.free_bytes < size_bytes:
            victim = instance.evictor.victim(now_s)
            if victim is None:
                raise AssertionError(f"{instance.name} has no room and nothing is loaded")
            model, at_s = victim
            room_s = max(room_s, at_s)
            instance.free_bytes += self._known.size_bytes[model]
            self._ready_s[model] = inf
            self._resumed.pop(model, None)
        return room_s

    def _place(self, model: int, now_s: float) -> int:
        if not self._several:
            return 0
        known = self._known
        size_bytes = known.size_bytes[model]
        if self._setup.rule is Rule.LRU:
            return min(
                range(len(self._instances)),
                key=lambda number: self._lru_cost(self._instances[number], size_bytes, now_s),
            )
        wanted = Wanted(
            known.names[model],
            size_bytes,
            known.load_s[model],
            known.history(model).rate_per_s(now_s),
            known.service_s[model],
        )
        placement = place(wanted, [self._candidate(instance, now_s) for instance in self._instances])
        assert not isinstance(placement, Refusal), placement
        return self._numbers[placement.instance]

    def _candidate(self, instance: Instance, now_s: float) -> Candidate:
        return Candidate(
            instance.name,
            instance.capacity_bytes,
            instance.free_bytes,
            instance.evictor.price(now_s),
            instance.queue_s(now_s),
            instance.busyness(now_s, self._setup.slots),
        )

    @staticmethod
    def _lru_cost(instance: Instance, size_bytes: int, now_s: float) -> tuple[bool, float]:
        full = instance.free_bytes < size_bytes
        return full, instance.evictor.price(now_s) if full else -float(instance.free_bytes)

    # --- accounts ---------------------------------------------------------------------------------------------------

    def _look_for_thrashing(self, now_s: float) -> None:
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + THRASH_LOOK_S
            for instance in self._instances:
                if isinstance(instance.evictor, RateCost):
                    self._looks += 1
                    self._thrashing += instance.evictor.thrash.judge(now_s) is not None

    def _evictor(self, number: int, capacity_bytes: int, next_use: NDArray[np.int64] | None) -> Evictor:
        setup = self._setup
        if setup.rule is Rule.LRU:
            return Lru(self._known)
        if setup.rule is Rule.OPTIMUM:
            assert next_use is not None
            return Belady(self._known, next_use)
        return RateCost(self._known, capacity_bytes, random.Random(f"{setup.seed}/{number}"))

    def _outcome(self, requests: int, span_s: float) -> Outcome:
        waits = np.frombuffer(self._waits) if self._waits else np.zeros(0)
        unserved = self._joined + self._misses + self._too_large
        lru_uses = sum(i.evictor.lru_uses for i in self._instances if isinstance(i.evictor, RateCost))
        slots = self._setup.loads * self._setup.instances
        return Outcome(
            setup=self._setup,
            requests=requests,
            warm=requests - unserved,
            joined=self._joined,
            misses=self._misses,
            too_large=self._too_large,
            first_uses=self._first_uses,
            load_s=self._load_s,
            wait_mean_s=float(waits.sum()) / max(requests, 1),
            wait_p99_s=quantile(waits, requests, 0.99),
            wait_max_s=float(waits.max(initial=0.0)),
            slots_busy=self._load_s / (span_s * slots) if span_s else 0.0,
            lru_share=lru_uses / max(len(self._trace), 1),
            thrashing=self._thrashing / max(self._looks, 1),
        )
