"""One load into one seat, from the import of its format to its charge; with what is learned on the way."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from modelmesh.dataplane.protocol import Replica
from modelmesh.errors import Code, LoadFailed, LoadTimeout, RuntimeUnavailable
from modelmesh.journal import Did
from modelmesh.runtime.control_channel import WorkerDied
from modelmesh.runtime.events import Events
from modelmesh.runtime.examined import Examinations, Examined
from modelmesh.runtime.facts import Facts
from modelmesh.runtime.ids import Ids
from modelmesh.runtime.memory import Charge
from modelmesh.runtime.protocol import ModelSpec, Noted
from modelmesh.runtime.seat import Placed, Seat
from modelmesh.runtime.sizes import Sizes, Weight
from modelmesh.worker.control import Changed, Import, Load, LoadDone, Message, Refused, Unload
from modelmesh.worker.formats.protocol import Format
from modelmesh.worker.memory import Footprint, footprint

log = logging.getLogger(__name__)

IMPORT_TIMEOUT_S: Final = 120.0
"""A cold disk under a busy machine takes its time over the first import of a large library."""
UNLOAD_GRACE_S: Final = 30.0
"""How long requests that are already in the worker may take when their model is unloaded."""


class Hung(Exception):
    """A load or import did not end in time; the worker can only be killed. `loading`: the model itself is to blame."""

    def __init__(self, error: LoadTimeout, *, loading: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.loading = loading


class FilesChanged(Exception):
    """The files are not those that were examined; nothing was loaded."""


class Loader:
    """Knows how to load into a seat and out of it; not which seat, nor when."""

    def __init__(
        self,
        examinations: Examinations,
        sizes: Sizes,
        facts: Facts,
        events: Events,
        load_timeout_s: float,
        ids: Ids,
    ) -> None:
        self._examinations = examinations
        self._events = events
        self._sizes = sizes
        self._facts = facts
        self._timeout_s = load_timeout_s
        self._ids = ids

    async def load_again(self, seat: Seat, spec: ModelSpec) -> Placed:
        """Load a model that another seat has, from its files as they are now. Raises as `load`."""
        placed, _ = await self.load(seat, spec, await self._examinations.afresh(spec))
        return placed

    async def is_away(self, spec: ModelSpec) -> bool:
        """Whether there is nothing of a model now, or its storage does not answer: it could not be loaded again."""
        try:
            await self._examinations.afresh(spec)
        except LoadFailed as error:
            return error.code in (Code.NOT_FOUND, Code.UNAVAILABLE)
        return False

    async def load(self, seat: Seat, spec: ModelSpec, examined: Examined) -> tuple[Placed, bool]:
        """Load a model and charge it. Returns it and whether its size is final. Raises LoadFailed; FilesChanged when they are not
        those that were examined; WorkerDied when the process ended meanwhile; Hung after the load timeout."""
        async with seat.turn:
            worker = seat.worker
            if worker is None or not seat.ready:
                raise WorkerDied(seat.name)
            seat.loading = spec
            seat.changes += 1
            try:
                if examined.format not in seat.formats:
                    seat.importing = examined.format
                    await self._import(seat, examined.format, spec.id)
                return await self._load(seat, spec, examined)
            except WorkerDied:
                await worker.wait_buried()
                raise
            finally:
                seat.loading = seat.importing = None
                seat.account.reserved_bytes = 0

    async def prepare(self, seat: Seat, format: Format) -> None:
        """Import a format that no load waits for. Raises LoadFailed; WorkerDied; Hung after its timeout."""
        async with seat.turn:
            if not seat.ready or format in seat.formats:
                return
            seat.importing = format
            try:
                await self._import(seat, format, "")
            finally:
                seat.importing = None
                seat.account.reserved_bytes = 0

    async def _import(self, seat: Seat, format: Format, model: str) -> None:
        """Import a format into a worker; what that weighs becomes its base. Told of the model that waits for it, if one does."""
        assert seat.worker is not None
        worker, imported, account = seat.worker, tuple(seat.formats), seat.account
        account.reserved_bytes = self._facts.base_bytes(format, imported)
        before, begun_s = await _reading(worker.pid), time.monotonic()
        await self._ask(seat, Import(format.name), model, loading=False)
        import_s, after = time.monotonic() - begun_s, await _reading(worker.pid)
        self._events.put(
            Noted(
                Did.IMPORTED,
                model,
                f"{seat.name} imported {format.name}{' first' if model else ''}, in {import_s:.1f} s.",
            )
        )
        if before is not None and after is not None:
            self._facts.learn_base(format, imported, account.base_grew(before, after))
            await asyncio.to_thread(self._facts.save)
        seat.formats.append(format)
        seat.importing = None

    async def _load(self, seat: Seat, spec: ModelSpec, examined: Examined) -> tuple[Placed, bool]:
        assert seat.worker is not None
        worker, account, format = seat.worker, seat.account, examined.format
        content = self._sizes.content_of(examined)
        known = self._sizes.measured(content)
        account.reserved_bytes = (known or self._sizes.predicted(format, examined.size_bytes)).peak_bytes
        replica = Replica(self._ids.replica(), seat.target_id)
        settled = self._sizes.settled(format, content)
        size_bytes = 0 if settled is None else settled.size_bytes
        command = Load(spec.id, replica.id, format.name, spec.path, content, size_bytes, examined.fingerprint)
        done = await self._ask(seat, command, spec.id, loading=True)
        if isinstance(done, Changed):
            raise FilesChanged(spec.id)
        if not isinstance(done, LoadDone):
            raise LoadFailed(
                f"The worker gave a wrong answer to the load of {spec.id}: {done}.", model=spec.id
            )
        known = self._sizes.measured(done.content)
        measured = done.measured or known is not None
        size_bytes = known.size_bytes if known is not None and not done.measured else done.size_bytes
        peak_bytes = done.peak_bytes or (settled.peak_bytes if settled is not None else size_bytes)
        weight = Weight(size_bytes, peak_bytes, done.load_s, done.file_bytes)
        self._sizes.learn(examined, done.content, weight, measured=measured)
        self._facts.largest_model_bytes = max(self._facts.largest_model_bytes, size_bytes)
        placed = Placed(spec, format, done.content, replica, peak_bytes, done.load_s, done.sizing_s)
        if seat.worker is not worker:
            raise WorkerDied(seat.name)
        seat.models[spec.id] = placed
        account.charges[spec.id] = Charge(size_bytes, done.file_bytes)
        account.base_anon_bytes += done.base_bytes
        return placed, measured

    async def _ask(self, seat: Seat, command: Message, model: str, *, loading: bool) -> Message:
        assert seat.worker is not None
        started_s = time.monotonic()
        try:
            timeout_s = self._timeout_s if loading else max(self._timeout_s, IMPORT_TIMEOUT_S)
            answer = await seat.worker.ask(command, timeout_s)
        except TimeoutError as error:
            what = "loading" if loading else "importing its framework"
            who = f"Model {model}" if model else seat.name
            timeout = LoadTimeout(
                f"{who} was still {what} after {time.monotonic() - started_s:.0f} s and was given up.",
                model=model,
            )
            raise Hung(timeout, loading=loading) from error
        if isinstance(answer, Refused):
            raise LoadFailed(answer.reason, code=Code(answer.code), model=model)
        return answer

    async def unload(self, seat: Seat, model: str) -> None:
        """Unload a model and release its charge. Returns when its memory is free, also when the worker died meanwhile.
        Raises RuntimeUnavailable when the worker does not answer."""
        worker = seat.worker
        if worker is not None and model in seat.models:
            try:
                answer = await worker.ask(Unload(model, UNLOAD_GRACE_S), UNLOAD_GRACE_S + self._timeout_s)
            except WorkerDied:
                return
            except TimeoutError as error:
                raise RuntimeUnavailable(
                    f"{seat.name} does not answer to the unload of {model}.", model=model
                ) from error
            if isinstance(answer, Refused):
                raise LoadFailed(answer.reason, code=Code(answer.code), model=model)
        if seat.worker is worker:
            seat.changes += 1
            seat.models.pop(model, None)
            seat.account.charges.drop(model)


async def _reading(pid: int) -> Footprint | None:
    return await asyncio.to_thread(footprint, pid)
