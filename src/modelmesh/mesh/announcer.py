"""Telling the other instances what this one holds, what failed here and how it is doing.

Changes are told at once, the rest each second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from modelmesh.clock import Clock
from modelmesh.errors import Code, code_of
from modelmesh.mesh.copies import Copies
from modelmesh.mesh.failures import Failures
from modelmesh.mesh.views import State
from modelmesh.peers.protocol import Failed, Held, Load, Peers

EVERY_S: Final = 1.0
RATE_STEP: Final = 1.5
"""A rate is told again when it changed by this factor."""
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
        self._told: dict[str, float] = {}
        """Models told as held, with the rate that was told."""
        self._due_s = 0.0
        self._leaving = False
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
            self.sequence = self._peers.announce(held, failed)
        return self.sequence

    def tick(self, *, at_once: bool = False) -> None:
        """Each second, or at once, how the instance is doing and which copies are used otherwise than was told."""
        now_s = self._clock.monotonic_s()
        if now_s < self._due_s and not at_once:
            return
        self._due_s = now_s + EVERY_S
        held = []
        for model in list(self._used)[:RATES_EACH]:
            del self._used[model]
            copy, told = self._copies.get(model), self._told.get(model)
            if copy is None or told is None:
                continue
            rate_per_s = copy.history.rate_per_s(now_s)
            if (
                not told / RATE_STEP <= rate_per_s <= told * RATE_STEP
                and (row := self._held(model)) is not None
            ):
                held.append(row)
        self.sequence = self._peers.announce(held, load=self._load_of())

    def _held(self, model: str) -> Held | None:
        """What there is to say of a model; None when it never was held, as far as the others know."""
        copy = self._copies.get(model)
        if copy is None or copy.state is State.UNLOADING or copy.retirement is not None or self._leaving:
            return None if self._told.pop(model, None) is None else Held(model, False)
        now_s = self._clock.monotonic_s()
        rate_per_s = self._told[model] = copy.history.rate_per_s(now_s)
        last_used_ms = 0
        if copy.history.count:
            last_used_ms = round((self._clock.wall_s() - (now_s - copy.history.last_s)) * 1000)
        loaded = copy.state is State.LOADED
        return Held(
            model, loaded, not loaded, copy.size_bytes, round(copy.load_s * 1000), rate_per_s, last_used_ms
        )

    def _failed_row(self, model: str) -> Failed:
        standing = self._failures.standing(model)
        if standing is None:
            return Failed(model, Code.OK, "", False, 0)
        left_ms = round((standing.expires_s - self._clock.monotonic_s()) * 1000)
        return Failed(
            model, code_of(standing.error), str(standing.error), standing.permanent, max(left_ms, 1)
        )
