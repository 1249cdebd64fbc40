"""What was in use and is loaded nowhere now is loaded again by its keeper, before the next request asks for it.

    an instance died ──▶ what only it held, the most missed first ─┐
    requests were refused, because loading failed ─────────────────┴─▶ a few at a time (`keeping`) ─▶ loaded, or given up

Requests that wait do not need this: they ask for their model themselves, and more urgently.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappush, heappushpop
from itertools import islice
from typing import Any, Final

from modelmesh.clock import Clock
from modelmesh.errors import ModelMeshError, NoCapacity, RuntimeUnavailable
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.failures import nature
from modelmesh.mesh.fleet import Known
from modelmesh.mesh.keeping.whole import Whole
from modelmesh.peers.protocol import Ask
from modelmesh.policy.backoff import Nature
from modelmesh.policy.eviction import miss_cost_s
from modelmesh.policy.urgency import Why
from modelmesh.registry.mirror import Mirror

EXPECTED_WITHIN_S: Final = 600.0
"""What is not expected to be used so soon waits until it is."""
MISSED_FOR_S: Final = 600.0
"""What could not be loaded again for so long is given up."""
MISSED_MAX: Final = 10_000
"""Models; the least missed are left out."""
NOTED_MAX: Final = 16
"""Models that queue at once for being loaded again: other duties of the keeper shall not wait for thousands of these."""
LOAD_S: Final = 300.0
STEP: Final = 500
"""Copies looked at in one step of the event loop."""


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Missed:
    """A model that was in use. `until_s`: when it is given up (monotonic)."""

    need: Why
    why: str
    until_s: float
    rate_per_s: float = 0.0
    last_used_wall_ms: int = 0


class Recovery:
    """Implements `keeping.Duty`."""

    def __init__(
        self,
        whole: Whole,
        mirror: Mirror,
        clock: Clock,
        journal: Journal,
        *,
        note: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        """`note` puts a model before the keeper."""
        self._whole = whole
        self._mirror = mirror
        self._clock = clock
        self._journal = journal
        self._note = note
        self._spawn = spawn
        self._missed: dict[str, _Missed] = {}
        self._next: deque[str] = deque()
        """Those of the missed whose turn is to come, the most missed first."""
        self._noted: dict[str, None] = {}

    # --- what is missed -------------------------------------------------------------------------------------

    def lost(self, instance: str, copies: Mapping[str, Known]) -> None:
        """An instance is gone, and with it these copies. They must not change any more."""
        if copies:
            self._spawn(self._take_stock(instance, copies), f"take stock of {instance}")

    async def _take_stock(self, instance: str, copies: Mapping[str, Known]) -> None:
        wall_ms = self._clock.wall_s() * 1000
        most: list[tuple[float, str]] = []
        rows = iter(copies.items())
        while step := list(islice(rows, STEP)):
            for model, known in step:
                loss_s = _loss_s(known, wall_ms)
                if loss_s <= 0.0 or self._whole.is_loaded(model):
                    continue
                if len(most) < MISSED_MAX:
                    heappush(most, (loss_s, model))
                else:
                    heappushpop(most, (loss_s, model))
            await asyncio.sleep(0)
        models = [model for _, model in sorted(most, reverse=True)]
        now_s = self._clock.monotonic_s()
        self._missed = {model: missed for model, missed in self._missed.items() if now_s < missed.until_s}
        until_s = now_s + MISSED_FOR_S
        for model in models:
            known = copies[model]
            why = f"its only holder {instance} is gone"
            self._missed[model] = _Missed(Why.SCALE, why, until_s, known.rate_per_s, known.last_used_wall_ms)
        if models:
            self._journal.record(
                Did.LOST,
                "",
                f"{len(models)} models in use were loaded in {instance} only: their keepers load them again, "
                "the most missed first.",
                models=len(models),
                copies=len(copies),
            )
        self._queue(models)

    def refused(self, model: str, error: ModelMeshError) -> None:
        """Requests were refused because the model could not be loaded. It is tried again unless that is pointless."""
        if nature(error) is Nature.BAD or len(self._missed) >= MISSED_MAX or not self._whole.keeps(model):
            return
        until_s = self._clock.monotonic_s() + MISSED_FOR_S
        fresh = model not in self._missed
        self._missed[model] = _Missed(Why.ASKED, "requests were refused before", until_s)
        if fresh:
            self._queue([model])

    # --- whose turn it is -----------------------------------------------------------------------------------

    def _queue(self, models: Iterable[str]) -> None:
        self._next.extend(models)
        self._feed()

    def _feed(self) -> None:
        """Note those whose turn has come, if this instance keeps them."""
        while self._next and len(self._noted) < NOTED_MAX:
            model = self._next.popleft()
            if model not in self._missed or model in self._noted or not self._whole.keeps(model):
                continue
            self._noted[model] = None
            self._note(model)

    def _is_missed(self, model: str) -> bool:
        """Whether it still is; else it is forgotten."""
        missed = self._missed.get(model)
        if missed is None:
            return False
        now_s = self._clock.monotonic_s()
        if now_s < missed.until_s and self._mirror.has_model(model) and not self._whole.is_loaded(model):
            return True
        del self._missed[model]
        return False

    # --- Duty -----------------------------------------------------------------------------------------------

    def candidates(self) -> Sequence[str]:
        """Keepers are others now: all that are missed are looked through again."""
        self._next = deque(self._missed)
        self._noted.clear()
        self._feed()
        return list(self._noted)

    def needs(self, model: str) -> bool:
        if self._is_missed(model):
            return True
        self._done(model)
        return False

    async def attend(self, model: str) -> None:
        missed = self._missed[model]
        standing = self._whole.standing(model)
        if standing is not None:
            self._done(model)
            left_s = standing.expires_s - self._clock.monotonic_s()
            raise RuntimeUnavailable(str(standing.error), model=model, retry_after_s=left_s)
        try:
            await self._whole.provide(
                Ask(model, LOAD_S, missed.need, missed.why, missed.rate_per_s, missed.last_used_wall_ms)
            )
            self._missed.pop(model, None)
        except NoCapacity as error:
            if missed.need is Why.ASKED:
                raise
            log.info("Model %s is not loaded again before it is asked for: %s", model, error)
            self._missed.pop(model, None)
        finally:
            self._done(model)

    def _done(self, model: str) -> None:
        """It does not hold up others: it is loaded, given up, or tried again in its time."""
        if model in self._noted:
            del self._noted[model]
            self._feed()


def _loss_s(known: Known, wall_ms: float) -> float:
    """Seconds waited per second without the copy; 0 when it is not expected to be used soon."""
    if not known.loaded or known.rate_per_s <= 0.0:
        return 0.0
    idle_s = max(wall_ms - known.last_used_wall_ms, 0.0) / 1000
    rate_per_s = min(known.rate_per_s, 1.0 / max(idle_s, 1e-3))
    if rate_per_s * EXPECTED_WITHIN_S < 1.0:
        return 0.0
    return rate_per_s * miss_cost_s(known.load_ms / 1000, rate_per_s)
