"""Telling the other instances what this one holds, what failed here and how it is doing.

Changes are told at once, the rest each second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from modelmesh.clock import Clock
from modelmesh.errors import Code, code_of
from modelmesh.mesh.cache.copies import Copies
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.views import State
from modelmesh.peers.protocol import Failed, Held, Load, Peers, Tally

EVERY_S: Final = 1.0
RATE_STEP: Final = 1.5
"""A rate is told again when it changed by this factor."""
USE_STALE_S: Final = 60.0
"""That a copy is used is told at least this often: when the instance dies, others know by it what is missed."""
LOAD_STALE_S: Final = 0.1
"""When copies come or go, how the instance is doing is told along with them, but not more often than this."""
RATES_EACH: Final = 2_000
"""Of the copies used lately so many are looked at in one second; the others in the next."""


class Announcer:
    """`load_of` says how the instance is doing. `changed` and `failed` only take a note; `flush` tells."""

    def __init__(
        self, peers: Peers, copies: Copies, failures: Failures, clock: Clock, load_of: Callable[[], Load]
    ) -> None:
        self._peers = peers
        self._copies = copies
        self._failures = failures
        self._clock = clock
        self._load_of = load_of
        self._changed: dict[str, None] = {}
        self._failed: dict[str, None] = {}
        self._used: dict[str, None] = {}
        self._told: dict[str, tuple[float, float]] = {}
        """Models told as held, with the rate that was told, and when."""
        self._due_s = 0.0
        self._load_told_s = -LOAD_STALE_S
        self._leaving = False
        self.tallies: Callable[[], tuple[Tally, ...]] = tuple
        """What copies here served in trials of canaries, told with how the instance is doing."""
        self.sequence = 0
        """Of what was told last."""

    def changed(self, model: str) -> None:
        """Its copy here is in another state."""
        self._changed[model] = None

    def failed(self, model: str) -> None:
        """A load of it failed here, or its failure is forgotten."""
        self._failed[model] = None

    def used(self, model: str) -> None:
        self._used[model] = None

    def give_up_all(self) -> None:
        """Tell that nothing is held here any more: requests of others go elsewhere from now on."""
        self._leaving = True
        self._changed.update(dict.fromkeys(self._told))
        self.flush()

    def flush(self) -> int:
        """Tell what changed since the last time. Returns the sequence of the newest that was told."""
        held = [row for model in self._changed if (row := self._held(model)) is not None]
        failed = [self._failed_row(model) for model in self._failed]
        self._changed.clear()
        self._failed.clear()
        if held or failed:
            self.sequence = self._peers.announce(held, failed, self._load_since(LOAD_STALE_S))
        return self.sequence

    def _load_since(self, stale_s: float) -> Load | None:
        """How the instance is doing, if that was told so long ago."""
        now_s = self._clock.monotonic_s()
        if now_s - self._load_told_s < stale_s:
            return None
        self._load_told_s = now_s
        return replace(self._load_of(), tallies=self.tallies())

    def tick(self, *, at_once: bool = False) -> None:
        """Each second, or at once, how the instance is doing and which copies are used otherwise than was told."""
        now_s = self._clock.monotonic_s()
        if now_s < self._due_s and not at_once:
            return
        self._due_s = now_s + EVERY_S
        held = []
        for model in list(self._used)[:RATES_EACH]:
            del self._used[model]
            copy = self._copies.get(model)
            if copy is None or model not in self._told:
                continue
            told, told_s = self._told[model]
            same = told / RATE_STEP <= copy.history.rate_per_s(now_s) <= told * RATE_STEP
            if (not same or now_s - told_s >= USE_STALE_S) and (row := self._held(model)) is not None:
                held.append(row)
        self.sequence = self._peers.announce(held, load=self._load_since(0.0))

    def _held(self, model: str) -> Held | None:
        """What there is to say of a model; None when it never was held, as far as the others know. How it was used is said also
        of one that goes: it may come back elsewhere."""
        copy = self._copies.get(model)
        if copy is None:
            return None if self._told.pop(model, None) is None else Held(model, False)
        now_s, history = self._clock.monotonic_s(), copy.history
        rate_per_s, last_used_ms = history.rate_per_s(now_s), 0
        if history.count:
            last_used_ms = round((self._clock.wall_s() - (now_s - history.last_s)) * 1000)
        going = copy.state is State.UNLOADING or copy.retirement is not None or self._leaving
        if going and self._told.pop(model, None) is None:
            return None
        if not going:
            self._told[model] = rate_per_s, now_s
        loaded, load_ms = copy.state is State.LOADED and not going, round(copy.load_s * 1000)
        return Held(
            model, loaded, not loaded and not going, copy.size_bytes, load_ms, rate_per_s, last_used_ms
        )

    def _failed_row(self, model: str) -> Failed:
        standing = self._failures.standing(model)
        if standing is None:
            return Failed(model, Code.OK, "", False, 0)
        left_ms = round((standing.expires_s - self._clock.monotonic_s()) * 1000)
        return Failed(
            model, code_of(standing.error), str(standing.error), standing.permanent, max(left_ms, 1)
        )
