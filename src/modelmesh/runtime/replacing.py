"""Replacing a worker that cannot go on: a new one first where it fits, its models moved one by one; else at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from modelmesh.errors import ModelMeshError
from modelmesh.journal import Did
from modelmesh.runtime.control_channel import WorkerDied
from modelmesh.runtime.events import Events
from modelmesh.runtime.facts import Facts
from modelmesh.runtime.loader import FilesChanged, Hung, Loader
from modelmesh.runtime.meter import MIB, Meter
from modelmesh.runtime.protocol import CopyLost, Noted, ReplicasChanged
from modelmesh.runtime.seat import Placed, Seat, whereabouts
from modelmesh.runtime.supervisor import Supervisor

log = logging.getLogger(__name__)

ROUTE_GRACE_S: Final = 0.25
"""How long a moved model's old replica still serves, so that routes follow without a request being turned away."""
PAUSE_S: Final = 60.0
PAUSE_S_MAX: Final = 3600.0
"""Between two replacements of swollen workers; doubled each time, for what swells again was not helped."""
END_GRACE_S: Final = 5.0
FILES_S: Final = 600.0
"""A replacement waits so long for the files of its models, where storage is away. What is not there by then is given up."""
LOOK_S: Final = 2.0
LOOKED_AT: Final = 3
"""Models by whose files it is told whether storage is away: one may have been deleted."""


class Replacing:
    """One replacement at a time."""

    def __init__(
        self, supervisor: Supervisor, loader: Loader, meter: Meter, facts: Facts, events: Events
    ) -> None:
        self.moving = ""
        """The model that is being moved now."""
        self.move = asyncio.Lock()
        """Held while a model is moved."""
        self._supervisor = supervisor
        self._loader = loader
        self._meter = meter
        self._facts = facts
        self._events = events
        self._one = asyncio.Lock()
        self._pause_s = PAUSE_S
        self._not_before_s = 0.0

    def swollen(self, seat: Seat) -> None:
        """A worker's memory does not come back: replace it, unless the last replacement was a moment ago."""
        now_s = time.monotonic()
        if seat.closed or now_s < self._not_before_s:
            return
        self._not_before_s = now_s + self._pause_s
        self._pause_s = min(self._pause_s * 2, PAUSE_S_MAX)
        why = f"it keeps {seat.kept_bytes / MIB:.1f} MiB that belong to no model"
        self._supervisor.spawn(self.replace(seat, why), f"{seat.name} replacement")

    def hung(self, seat: Seat, why: str, after: Callable[[], Awaitable[None]] | None = None) -> None:
        """A worker's load never ends: save its models and kill it; `after` something, until which it serves but loads nothing."""
        if not seat.closed:
            seat.closed = True
            self._supervisor.spawn(self._replace_after(seat, why, after), f"{seat.name} replacement")

    async def _replace_after(self, seat: Seat, why: str, after: Callable[[], Awaitable[None]] | None) -> None:
        if after is not None:
            await after()
        await self.replace(seat, why)

    async def replace(self, seat: Seat, why: str) -> None:
        """End a worker whose seat takes no more loads, and give its models to a new one as far as memory allows. While their
        files are away it serves on: they could not be loaded again."""
        async with self._one:
            until_s = time.monotonic() + FILES_S
            await self._wait_for_files(list(seat.models.values())[:LOOKED_AT], until_s)
            if seat.worker is None or seat not in self._supervisor.seats:
                return
            seat.closed = True
            n_models, successor = len(seat.models), await self._successor(seat)
            if successor is None:
                self._note(
                    seat,
                    f"{why}; there is no room for a second one beside it, so {n_models} models load again",
                )
                seat.closed = bool(seat.alone_for)
                await self._supervisor.end_worker(seat, why)
                return
            self._note(seat, f"{why}; {n_models} models move to {successor.name}")
            for placed in sorted(seat.models.values(), key=lambda placed: placed.peak_bytes):
                await self._wait_for_files([placed], until_s)
                if not successor.ready or seat.worker is None:
                    break
                await self._move(placed, seat, successor)
            await self._supervisor.end_seat(seat, END_GRACE_S, why)

    async def _wait_for_files(self, models: Sequence[Placed], until_s: float) -> None:
        """Return when those of one of these models are there."""
        told = False
        while models and time.monotonic() < until_s:
            if not all([await self._loader.is_away(placed.spec) for placed in models]):
                return
            if not told:
                told = True
                log.info("A worker is replaced later: nothing is at %s now.", models[0].spec.path)
            await asyncio.sleep(LOOK_S)

    def _note(self, seat: Seat, reason: str) -> None:
        self._events.put(Noted(Did.WORKER_RECYCLED, "", f"{seat.name} is replaced: {reason}."))

    async def _successor(self, seat: Seat) -> Seat | None:
        """A new worker, when it fits beside the old one together with the largest model to move."""
        if seat.alone_for:
            return None
        needed_bytes = self._facts.idle_base_bytes() + max(
            (placed.peak_bytes for placed in seat.models.values()), default=0
        )
        for place, format in enumerate(seat.formats):
            needed_bytes += self._facts.base_bytes(format, seat.formats[:place])
        if needed_bytes > self._meter.free_bytes():
            return None
        try:
            return await self._supervisor.add_seat()
        except ModelMeshError as error:
            log.warning("No successor of %s could be started: %s", seat.name, error)
            return None

    async def _move(self, placed: Placed, seat: Seat, successor: Seat) -> None:
        model = placed.spec.id
        async with self.move:
            if model not in seat.models:
                return
            self.moving = model
            try:
                if self._elsewhere(model, seat) is None:
                    await self._loader.load_again(successor, placed.spec)
                self._tell(model, seat)
                await asyncio.sleep(ROUTE_GRACE_S)
                await self._loader.unload(seat, model)
            except (ModelMeshError, FilesChanged, WorkerDied, Hung) as error:
                log.warning("Model %s could not be moved from %s: %s", model, seat.name, error)
                if model not in successor.models and seat.models.pop(model, None) is not None:
                    seat.account.charges.drop(model)
                    self._tell(model, seat, f"its worker is replaced and it could not be moved: {error}")
            finally:
                self.moving = ""

    def _tell(self, model: str, left: Seat, reason: str = "") -> None:
        """Tell where a model is but in the seat that was left; that it is lost when it is nowhere."""
        self._events.put(self._elsewhere(model, left) or CopyLost(model, reason))

    def _elsewhere(self, model: str, left: Seat) -> ReplicasChanged | None:
        return whereabouts(model, [seat for seat in self._supervisor.seats if seat is not left])
