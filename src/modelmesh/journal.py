"""The journal: every decision with the numbers it was taken on and its reason in one sentence.

A bounded ring in memory, read by `modelmesh explain` and streamed by the ops API; an optional sink gets every
entry as well (a JSON lines file). Nothing here decides anything.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import takewhile
from typing import Final

from modelmesh.clock import Clock


class Did(StrEnum):
    """What was decided or happened."""

    REGISTERED = "registered"
    UNREGISTERED = "unregistered"
    SWITCHED = "switched"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    PLACED = "placed"
    LOADING = "loading"
    IMPORTED = "imported"
    LOADED = "loaded"
    LOAD_FAILED = "load failed"
    EVICTED = "evicted"
    UNLOADED = "unloaded"
    REVIVED = "revived"
    LOST = "lost"
    REFUSED = "refused"
    SCALED = "scaled"
    MOVED = "moved"
    EJECTED = "ejected"
    JOINED = "joined"
    SUSPECTED = "suspected"
    STRUCK = "struck"
    QUARANTINED = "quarantined"
    CONFIGURED = "configured"
    CORDONED = "cordoned"
    UNCORDONED = "uncordoned"
    DRAINING = "draining"
    WORKER_STARTED = "worker started"
    WORKER_DIED = "worker died"
    WORKER_RECYCLED = "worker recycled"
    SKIPPED = "skipped"
    WARNED = "warned"


_WAITING_ENDS: Final = frozenset({Did.LOADED, Did.LOAD_FAILED, Did.REFUSED, Did.REVIVED})
_REQUESTS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision. `numbers` are the values it was taken on, units last in their names (`size_bytes`)."""

    sequence: int
    wall_s: float
    did: Did
    model: str
    reason: str
    """One sentence, with the counterfactual where there is one ("would have stayed with 1.4 MB more")."""
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    request: Mapping[str, str] = field(default_factory=dict)
    """What the request it goes back to said of itself, by the names chosen in the settings."""


class Journal:
    """A bounded ring of entries, newest last. `sink` is called for each entry, in order, and must not block."""

    def __init__(
        self, clock: Clock, capacity: int = 20_000, sink: Callable[[Entry], None] | None = None
    ) -> None:
        self._clock = clock
        self._entries: deque[Entry] = deque(maxlen=capacity)
        self._sink = sink
        self._sequence = 0
        self._requests: OrderedDict[str, Mapping[str, str]] = OrderedDict()

    def asked(self, model: str, request: Mapping[str, str]) -> None:
        """A request that says this of itself is the first to wait for `model`: entries about it tell so, up to the one that ends
        the waiting. At most 10,000 models are remembered."""
        self._requests.pop(model, None)
        if request:
            self._requests[model] = request
            if len(self._requests) > _REQUESTS_MAX:
                self._requests.popitem(last=False)

    def record(self, did: Did, model: str, reason: str, **numbers: float | int | str) -> Entry:
        """Append a decision about `model` (empty: about the instance) and return the entry."""
        self._sequence += 1
        end = did in _WAITING_ENDS
        request = self._requests.pop(model, {}) if end else self._requests.get(model, {})
        entry = Entry(self._sequence, self._clock.wall_s(), did, model, reason, numbers, request)
        self._entries.append(entry)
        if self._sink is not None:
            self._sink(entry)
        return entry

    @property
    def last(self) -> int:
        """The sequence of the newest entry; 0 when there is none."""
        return self._sequence

    def about(self, *models: str) -> list[Entry]:
        """The entries about any of these, oldest first; empty when none is remembered."""
        return [entry for entry in self._entries if entry.model in models]

    def since(self, sequence: int) -> Iterator[Entry]:
        """The entries after `sequence`, oldest first. Costs what is returned, not what is remembered."""
        newest_first = takewhile(lambda entry: entry.sequence > sequence, reversed(self._entries))
        return iter(tuple(newest_first)[::-1])
