"""What a keeper sees to without a request that waits: models it keeps that need something done.

    noted (a copy went, a record changed) ─┐
    instances came or went: look through ──┴─▶ queue ─▶ attended, a few at a time ─▶ done, or tried again later

What is to be done is the business of duties. Whose turn it is is decided here, so that nothing is done too often or all at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import Final, Protocol

from modelmesh.clock import Clock
from modelmesh.errors import ModelMeshError
from modelmesh.policy.backoff import Nature, stands_s

AT_ONCE: Final = 4
"""Models attended to at a time: loads that nobody waits for leave room for those that somebody does."""
QUEUE_MAX: Final = 10_000
"""Models that may wait for their turn, and as many that are tried again later. What is beyond is found by looking through."""
GRACE_S: Final = 1.0
"""Instances that come and go do so in groups: they are looked at together."""
LOOK_AGAIN_S: Final = 60.0
"""When models had to be left out, all are looked through again after this."""
NEVER_S: Final = float("inf")
STEP: Final = 100
"""Models looked at in one step of the event loop."""

log = logging.getLogger(__name__)


class Duty(Protocol):
    """One kind of thing a keeper does for models."""

    def candidates(self) -> Sequence[str]:
        """Models that may need it: looked through when instances came or went."""

    def needs(self, model: str) -> bool:
        """Whether something is to be done now. Quick, and true of what is known at this moment."""

    async def attend(self, model: str) -> None:
        """Do it, once. Raises a ModelMeshError when it could not be done; then it is tried again, later each time."""


class Keeping:
    """`keeps` says whether this instance is the keeper of a model. One owner task, `run`."""

    def __init__(self, clock: Clock, rng: random.Random, keeps: Callable[[str], bool]) -> None:
        self._clock = clock
        self._rng = rng
        self._keeps = keeps
        self._duties: list[Duty] = []
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._attended: dict[str, bool] = {}
        """Models attended to now, and whether they were noted again meanwhile."""
        self._later: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Models whose last try failed: how often in a row, and when (monotonic) the next is due; inf: it is its turn now."""
        self._due: list[tuple[float, str]] = []
        """A heap of when they are due; what contradicts `_later` is skipped."""
        self._looked = False
        self._looking: Iterator[str] | None = None
        self._look_s = NEVER_S
        """When all candidates are looked through next."""
        self._woken = asyncio.Event()

    def add(self, duty: Duty) -> None:
        """Before `run`."""
        self._duties.append(duty)

    def note(self, model: str) -> None:
        """A model may need something now. Idempotent and quick. One whose last try failed waits for its time nevertheless, and
        the first look at all comes first: who has just come does not know yet what the others hold."""
        if not self._looked:
            return
        if model in self._attended:
            self._attended[model] = True
        elif model not in self._later:
            self._enqueue(model)

    def members_changed(self) -> None:
        """Instances came, went, or take no more loads: other models are kept here now, and what failed may succeed."""
        now_s = self._clock.monotonic_s()
        self._look_s = min(self._look_s, now_s + GRACE_S)
        for model, (tries, due_s) in list(self._later.items()):
            if now_s + GRACE_S < due_s < NEVER_S:
                self._wait(model, tries, now_s + GRACE_S)
        self._woken.set()

    # --- the owner task -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Attend to what is noted until cancelled, and first of all look through everything."""
        self.members_changed()
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                model = await self._next()
                self._attended[model] = False
                task = group.create_task(self._attend(model), name=f"keep {model}")
                task.add_done_callback(lambda _: slots.release())

    async def _next(self) -> str:
        """The next model whose turn it is and that needs something."""
        while True:
            now_s = self._clock.monotonic_s()
            self._take_due(now_s)
            for _ in range(min(len(self._queue), STEP)):
                model, _none = self._queue.popitem(last=False)
                if self._needs(model):
                    return model
                self._later.pop(model, None)
            if self._queue or self._look_through():
                await asyncio.sleep(0)
                continue
            self._woken.clear()
            wake_s = min(self._look_s, self._due[0][0] if self._due else NEVER_S)
            try:
                async with asyncio.timeout(None if wake_s == NEVER_S else max(wake_s - now_s, 0.0)):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _take_due(self, now_s: float) -> None:
        if now_s >= self._look_s:
            self._look_s, self._looked = NEVER_S, True
            self._looking = iter(dict.fromkeys(model for duty in self._duties for model in duty.candidates()))
        while self._due and self._due[0][0] <= now_s:
            due_s, model = heappop(self._due)
            tries, expected_s = self._later.get(model, (0, NEVER_S))
            if due_s == expected_s:
                self._later[model] = tries, NEVER_S
                self._enqueue(model)

    def _look_through(self) -> bool:
        """Queue some of the candidates that need something. False when there are none left to look at."""
        if self._looking is None:
            return False
        models = list(islice(self._looking, STEP))
        if not models:
            self._looking = None
        for model in models:
            if model not in self._attended and model not in self._later and self._needs(model):
                self._enqueue(model)
        return bool(models)

    def _needs(self, model: str) -> bool:
        return any(duty.needs(model) for duty in self._duties) and self._keeps(model)

    def _enqueue(self, model: str) -> None:
        if len(self._queue) >= QUEUE_MAX and model not in self._queue:
            self._later.pop(model, None)
            self._left_out()
            return
        self._queue[model] = None
        self._woken.set()

    def _left_out(self) -> None:
        self._look_s = min(self._look_s, self._clock.monotonic_s() + LOOK_AGAIN_S)

    async def _attend(self, model: str) -> None:
        try:
            for duty in self._duties:
                if duty.needs(model):
                    await duty.attend(model)
        except ModelMeshError as error:
            self._try_later(model, error)
        else:
            self._later.pop(model, None)
        finally:
            again = self._attended.pop(model)
        if again:
            self.note(model)

    def _try_later(self, model: str, error: ModelMeshError) -> None:
        tries = self._later.pop(model, (0, NEVER_S))[0] + 1
        pause_s = max(stands_s(tries, Nature.PASSING, self._rng), error.retry_after_s or 0.0)
        log.info("Model %s is seen to again in %.0f s: %s", model, pause_s, error)
        self._wait(model, tries, self._clock.monotonic_s() + pause_s)
        self._woken.set()
        if len(self._later) > QUEUE_MAX:
            self._later.popitem(last=False)
            self._left_out()

    def _wait(self, model: str, tries: int, due_s: float) -> None:
        self._later[model] = tries, due_s
        heappush(self._due, (due_s, model))
