"""Memory that is free is filled with models that were used lately: after a restart those used last come back first.

Each keeper sees to its own models, one at a time and half of the time at most. Nothing is evicted for it, some memory stays
free for what requests ask for, and while loads that somebody waits for are queued it pauses.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from heapq import heappush, heappushpop
from typing import Final

from modelmesh.clock import Clock
from modelmesh.errors import ModelMeshError
from modelmesh.mesh.cache.histories import Histories
from modelmesh.mesh.keeping.whole import Whole
from modelmesh.peers.protocol import Ask
from modelmesh.policy.eviction import miss_cost_s
from modelmesh.policy.urgency import Why
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import ModelRecord

FIRST_S: Final = 2.0
"""After the start: what requests ask for comes first, and other instances are heard."""
LOOK_S: Final = 60.0
LOOK_SHARE: Final = 0.01
"""Of the time may go into looking through the registry."""
USED_WITHIN_S: Final = 7 * 86_400.0
"""What was not used for a week is left where it is: fetching it costs, too."""
AT_ONCE_MAX: Final = 1_000
"""Models chosen in one look through the registry."""
STEP: Final = 1_000
"""Records looked at in one step of the event loop."""
PAUSE_S: Final = 0.05
LOAD_S: Final = 300.0
UNKNOWN_LOAD_S: Final = 1.0
UNKNOWN_BYTES: Final = 1 << 20
AGAIN_S: Final = 3_600.0
"""A model that was loaded on a guess, or unloaded on request, is not loaded on a guess so soon again."""
LEFT_MAX: Final = 10_000

log = logging.getLogger(__name__)


class Filling:
    """One owner task, `run`."""

    def __init__(self, whole: Whole, mirror: Mirror, histories: Histories, clock: Clock) -> None:
        self._whole = whole
        self._mirror = mirror
        self._histories = histories
        self._clock = clock
        self._left: OrderedDict[str, float] = OrderedDict()
        """Models not to be loaded on a guess, and since when."""

    def leave(self, model: str) -> None:
        """It was unloaded because somebody wanted that: it stays so until it is asked for."""
        self._left[model] = self._clock.monotonic_s()
        self._left.move_to_end(model)
        if len(self._left) > LEFT_MAX:
            self._left.popitem(last=False)

    async def run(self) -> None:
        """Fill what is free until cancelled."""
        await asyncio.sleep(FIRST_S)
        while True:
            looked_s = 0.0
            if self._whole.is_free():
                began_s = self._clock.monotonic_s()
                expected = await self._expected()
                looked_s = self._clock.monotonic_s() - began_s
                for model in expected:
                    if not await self._fill(model):
                        break
                else:
                    if len(expected) == AT_ONCE_MAX:
                        continue
            await asyncio.sleep(max(LOOK_S, looked_s / LOOK_SHARE))

    async def _fill(self, model: str) -> bool:
        """Load one model. False when no memory is free any more."""
        while self._whole.is_pressed():  # noqa: ASYNC110 - anything may end it
            await asyncio.sleep(PAUSE_S)
        record = self._mirror.model(model)
        if record is None or not self._may(model):
            return True
        if not self._whole.is_free():
            return False
        began_s = self._clock.monotonic_s()
        self.leave(model)
        used_ms = round((self._clock.wall_s() - self._idle_s(model, record)) * 1000)
        try:
            await self._whole.provide(Ask(model, LOAD_S, Why.PREWARM, "memory is free", 0.0, used_ms))
        except ModelMeshError as error:
            log.info("Model %s was not loaded into free memory: %s", model, error)
        await asyncio.sleep(max(self._clock.monotonic_s() - began_s, PAUSE_S))
        return True

    def _may(self, model: str) -> bool:
        left_s = self._left.get(model)
        if left_s is not None and self._clock.monotonic_s() - left_s < AGAIN_S:
            return False
        whole = self._whole
        return not whole.is_held(model) and not whole.has_failed(model) and whole.keeps(model)

    # --- what is expected to be used ------------------------------------------------------------------------

    async def _expected(self) -> list[str]:
        """The models worth most per byte of those that may be loaded, the best first."""
        since_ms = round((self._clock.wall_s() - USED_WITHIN_S) * 1000)
        best: list[tuple[float, str]] = []
        after = ""
        while True:
            used, after = self._mirror.used_since(since_ms, after, STEP)
            for model, record in used:
                worth = self._worth(model, record)
                if len(best) == AT_ONCE_MAX and worth <= best[0][0]:
                    continue
                if self._may(model):
                    (heappush if len(best) < AT_ONCE_MAX else heappushpop)(best, (worth, model))
            if not after:
                return [model for _, model in sorted(best, reverse=True)]
            await asyncio.sleep(0)

    def _worth(self, model: str, record: ModelRecord) -> float:
        """Seconds of waiting saved per second and byte."""
        history = self._histories.peek(model)
        if history is not None and history.count > 1:
            rate_per_s = history.rate_per_s(self._clock.monotonic_s())
        else:  # as `Uses` takes one that was used once
            rate_per_s = 1.0 / max(2.0 * self._idle_s(model, record), 1.0)
        load_s = record.load_ms / 1000 or UNKNOWN_LOAD_S
        size_bytes = record.size_bytes or self._whole.typical_bytes() or UNKNOWN_BYTES
        return rate_per_s * miss_cost_s(load_s, rate_per_s) / size_bytes

    def _idle_s(self, model: str, record: ModelRecord) -> float:
        """Since its last use anywhere, as far as known."""
        idle_s = self._clock.wall_s() - record.last_used_ms / 1000
        history = self._histories.peek(model)
        if history is not None and history.count:
            idle_s = min(idle_s, self._clock.monotonic_s() - history.last_s)
        return max(idle_s, 0.0)
