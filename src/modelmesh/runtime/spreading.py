"""Replicas of hot models: one worker runs one batch at a time, so a model that keeps its worker busy is served by more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final

from modelmesh.errors import ModelMeshError
from modelmesh.journal import Did
from modelmesh.policy.copies import UTILISATION, next_count
from modelmesh.runtime.control_channel import WorkerDied
from modelmesh.runtime.events import Events
from modelmesh.runtime.facts import Facts
from modelmesh.runtime.loader import FilesChanged, Hung, Loader
from modelmesh.runtime.meter import Meter
from modelmesh.runtime.protocol import Noted
from modelmesh.runtime.replacing import ROUTE_GRACE_S, Replacing
from modelmesh.runtime.seat import Placed, Seat, whereabouts
from modelmesh.runtime.supervisor import Supervisor

log = logging.getLogger(__name__)

GROW_READINGS: Final = 2
"""Readings in a row, a second apart, that must ask for more: one long batch is no load."""
SHRINK_S: Final = 30.0
"""How long fewer must have been enough."""
PAUSE_S: Final = 10.0
"""Before a model is tried again whose replica could not be had."""
Choose = Callable[[Sequence[Seat], Placed], Seat | None]


@dataclass(slots=True)
class _Heat:
    """A model that was seen busy. `more` counts readings in a row that ask for more replicas."""

    more: int = 0
    fewer_since_s: float | None = None
    not_before_s: float = 0.0


class Spreading:
    """Decides after each reading, and changes one model at a time. `choose` picks the seat of a new replica."""

    def __init__(
        self,
        supervisor: Supervisor,
        loader: Loader,
        meter: Meter,
        facts: Facts,
        replacing: Replacing,
        events: Events,
        choose: Choose,
    ) -> None:
        self._supervisor = supervisor
        self._loader = loader
        self._meter = meter
        self._facts = facts
        self._replacing = replacing
        self._events = events
        self._choose = choose
        self._hot: dict[str, _Heat] = {}
        self._changing = False

    def step(self) -> None:
        """The seats were read anew."""
        seats = [seat for seat in self._supervisor.seats if not seat.alone_for]
        busy: dict[str, float] = {}
        for seat in seats:
            for model, share in seat.shares.items():
                busy[model] = busy.get(model, 0.0) + share
        now_s = time.monotonic()
        for model in {*self._hot, *(model for model, share in busy.items() if share > UTILISATION)}:
            holding = [seat for seat in seats if model in seat.models]
            if not holding:
                self._hot.pop(model, None)
            else:
                self._judge(model, busy.get(model, 0.0), holding, len(seats), now_s)

    def _judge(self, model: str, busy: float, holding: list[Seat], n_seats: int, now_s: float) -> None:
        heat = self._hot.setdefault(model, _Heat())
        wanted = next_count(len(holding), busy, 1.0, 1, False, 1, n_seats)
        heat.more = heat.more + 1 if wanted > len(holding) else 0
        if wanted >= len(holding):
            heat.fewer_since_s = None
        elif heat.fewer_since_s is None:
            heat.fewer_since_s = now_s
        if heat.more >= GROW_READINGS:
            self._begin(model, heat, now_s, grow=True, busy=busy)
        elif heat.fewer_since_s is not None and now_s - heat.fewer_since_s >= SHRINK_S:
            self._begin(model, heat, now_s, grow=False, busy=busy)
        elif len(holding) == 1 and busy <= UTILISATION:
            del self._hot[model]

    def _begin(self, model: str, heat: _Heat, now_s: float, *, grow: bool, busy: float) -> None:
        if self._changing or now_s < heat.not_before_s:
            return
        self._changing = True
        heat.more, heat.fewer_since_s, heat.not_before_s = 0, None, now_s + PAUSE_S
        change = self._grow(model, busy) if grow else self._shrink(model, busy)
        self._supervisor.spawn(self._changed(model, heat, change), f"replicas of {model}")

    async def _changed(self, model: str, heat: _Heat, change: Coroutine[None, None, bool]) -> None:
        try:
            async with self._replacing.move:
                self._replacing.moving = model
                if await change:
                    heat.not_before_s = 0.0
        except (ModelMeshError, FilesChanged, WorkerDied, Hung) as error:
            log.warning("The number of replicas of %s could not be changed: %s", model, error)
        finally:
            change.close()
            self._replacing.moving = ""
            self._changing = False

    def _holding(self, model: str) -> list[Seat]:
        return [seat for seat in self._supervisor.seats if model in seat.models and not seat.alone_for]

    async def _grow(self, model: str, busy: float) -> bool:
        """Load one more replica, when a worker has time for it and it fits into memory that is free. Whether it did."""
        holding = self._holding(model)
        if not holding:
            return False
        placed = holding[0].models[model]
        idle = [
            seat
            for seat in self._supervisor.seats
            if seat.ready and not seat.alone_for and seat not in holding and seat.busy < UTILISATION
        ]
        seat = self._choose(idle, placed)
        if seat is None:
            return False
        needed_bytes = placed.peak_bytes + self._facts.base_bytes(placed.format, seat.formats_soon)
        if needed_bytes > self._meter.free_bytes():
            return False
        there = whereabouts(model, holding)
        assert there is not None
        self._events.put(there._replace(size_bytes=there.size_bytes + needed_bytes))
        try:
            await asyncio.sleep(ROUTE_GRACE_S)  # the mesh charges that, and evicts where it has to
            grown = needed_bytes <= self._meter.free_bytes() and await self._add(seat, placed)
        finally:
            if (there := whereabouts(model, self._supervisor.seats)) is not None:
                self._events.put(there)
        if grown:
            self._note(
                model, f"it kept {_workers(len(holding))} busy for {busy / len(holding):.0%} of the time"
            )
        return grown

    async def _add(self, seat: Seat, placed: Placed) -> bool:
        """Load a replica. False, and it is gone again, when it is not the same model any more, or the only one."""
        model = placed.spec.id
        added = await self._loader.load_again(seat, placed.spec)
        if added.content == placed.content and len(self._holding(model)) > 1:
            return True
        await self._loader.unload(seat, model)
        return False

    async def _shrink(self, model: str, busy: float) -> bool:
        """Give up the replica in the busiest worker. Whether it did."""
        holding = self._holding(model)
        if len(holding) < 2:
            return False
        left = max(holding, key=lambda seat: seat.busy)
        there = whereabouts(model, [seat for seat in holding if seat is not left])
        assert there is not None
        self._events.put(there)
        await asyncio.sleep(ROUTE_GRACE_S)
        await self._loader.unload(left, model)
        if (there := whereabouts(model, self._supervisor.seats)) is not None:
            self._events.put(there)
            self._note(model, f"it was busy for {busy:.0%} of the time, which fewer can serve")
        return True

    def _note(self, model: str, why: str) -> None:
        n = len(self._holding(model))
        serve = "serves" if n == 1 else "serve"
        self._events.put(Noted(Did.SCALED, model, f"{_workers(n)} {serve} it now: {why}."))


def _workers(n: int) -> str:
    return "1 worker" if n == 1 else f"{n} workers"
