"""The built-in runtime: models of the installed formats in worker processes of our own, under one memory budget."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from modelmesh.clock import LoopClock
from modelmesh.errors import (
    Code,
    LoadFailed,
    ModelMeshError,
    ModelTooLarge,
    Quarantined,
    RuntimeUnavailable,
    SettingsError,
)
from modelmesh.journal import Did
from modelmesh.policy.runtimes import Offer
from modelmesh.runtime.control_channel import WorkerDied
from modelmesh.runtime.events import Events
from modelmesh.runtime.examined import Examinations, Examined
from modelmesh.runtime.facts import Facts
from modelmesh.runtime.ids import Ids
from modelmesh.runtime.loader import FilesChanged, Hung, Loader
from modelmesh.runtime.meter import MIB, Meter
from modelmesh.runtime.placement import Candidate, choose
from modelmesh.runtime.protocol import Estimate, Loaded, ModelSpec, Noted, RuntimeEvent, RuntimeInfo
from modelmesh.runtime.quarantine import Quarantine
from modelmesh.runtime.replacing import Replacing
from modelmesh.runtime.seat import Placed, Seat
from modelmesh.runtime.sizes import Sizes
from modelmesh.runtime.spreading import Spreading
from modelmesh.runtime.supervisor import Supervisor
from modelmesh.runtime.worker_process import WorkerConfig, WorkerProcess
from modelmesh.worker.formats.protocol import Format
from modelmesh.worker.formats.table import formats

log = logging.getLogger(__name__)

ATTEMPTS: Final = 3
"""Workers a load may lose to deaths that are not its fault."""
PROMISE_S: Final = 120.0
"""How long a load that was promised the import of a format keeps others from being asked for its bytes too."""


@dataclass(frozen=True, slots=True)
class BuiltinConfig:
    """What the built-in runtime is given."""

    budget_bytes: int
    """What all workers together may weigh, their own memory included."""
    workers: WorkerConfig
    n_workers: int = 1
    load_timeout_s: float = 60.0
    facts_path: Path | None = None
    """Where to keep what was learned about bases; None: not kept."""
    labels: frozenset[str] = frozenset()
    """What type constraints may require of it."""
    ids: Ids = field(default_factory=Ids)
    refusal: Callable[[str], str] = lambda path: ""
    """Why a path must not be loaded from, as a sentence; empty when it may. Called in a thread."""


@dataclass(slots=True, eq=False)
class _Order:
    """A load that runs. `unwanted`: nobody waits for its outcome any more; it is unloaded as soon as it is done."""

    spec: ModelSpec
    outcome: asyncio.Future[Loaded]
    task: asyncio.Task[None] | None = None
    unwanted: bool = False


class BuiltinRuntime:
    """Implements `runtime.protocol.Runtime`. Owned by the event loop it was started on."""

    def __init__(self, config: BuiltinConfig) -> None:
        self._config = config
        self._events = Events()
        self._sizes = Sizes()
        self._quarantine = Quarantine()
        self._orders: dict[str, _Order] = {}
        self._examinations = Examinations(config.refusal)
        self._promised: dict[Format, tuple[str, float]] = {}
        self._stopped = False

    def offer(self) -> Offer:
        """See `Runtime.offer`."""
        return Offer("builtin", frozenset(formats()), self._config.labels)

    async def start(self) -> RuntimeInfo:
        """Start the workers. Raises RuntimeUnavailable, SettingsError."""
        config = self._config
        self._stopped = False
        self._clock = LoopClock()
        self._facts = await asyncio.to_thread(Facts, config.facts_path)
        self._supervisor = Supervisor(
            config.workers, self._facts, self._quarantine, self._events, self._tell, self._blamed, self._again,
            config.ids,
        )  # fmt: skip
        self._loader = Loader(
            self._examinations, self._sizes, self._facts, self._events, config.load_timeout_s, config.ids
        )
        self._meter = Meter(
            config.budget_bytes,
            lambda: self._supervisor.seats,
            self._sizes,
            self._events,
            lambda seat: self._replacing.swollen(seat),
            lambda: self._spreading.step(),
        )
        self._replacing = Replacing(self._supervisor, self._loader, self._meter, self._facts, self._events)
        self._spreading = Spreading(
            self._supervisor, self._loader, self._meter, self._facts, self._replacing, self._events,
            self._choose_replica,
        )  # fmt: skip
        try:
            await self._supervisor.start(config.n_workers)
        except BaseException:
            await self.stop(0.0)
            raise
        capacity_bytes = self._meter.adopted()
        if capacity_bytes == 0:
            weigh_bytes = sum(seat.account.base_bytes for seat in self._supervisor.seats)
            await self.stop(0.0)
            raise SettingsError(
                f"The memory budget of {_mib(config.budget_bytes)} is less than what {config.n_workers} idle workers weigh "
                f"({_mib(weigh_bytes)}): give more memory or fewer workers."
            )
        self._warn_if_small()
        self._supervisor.spawn(self._meter.run(), "memory meter")
        self._supervisor.spawn(self._supervisor.watch_batches(), "watch of batches")
        return RuntimeInfo(
            capacity_bytes=capacity_bytes,
            max_loads=config.n_workers,
            model_types=frozenset(formats()),
            load_timeout_s=config.load_timeout_s,
            replica_slots=1,
        )

    def _warn_if_small(self) -> None:
        """The budget should hold the bases, one format and the largest model known."""
        bases_bytes = sum(seat.account.base_bytes for seat in self._supervisor.seats)
        format_bytes = max((self._facts.base_bytes(format, ()) for format in formats().values()), default=0)
        needed_bytes = bases_bytes + format_bytes + self._facts.largest_model_bytes
        if needed_bytes > self._config.budget_bytes:
            self._events.put(
                Noted(
                    Did.WARNED,
                    "",
                    f"The memory budget of {_mib(self._config.budget_bytes)} may not hold the workers with a framework and the "
                    f"largest known model; {_mib(needed_bytes)} would.",
                )
            )

    def _tell(self, reason: str) -> None:
        if not self._stopped:
            self._meter.tell(reason)

    def _blamed(self, model: str) -> None:
        """A worker died of it: its other replicas go, before they do the same. It runs alone from now on."""
        if any(model in seat.models for seat in self._supervisor.seats):
            self._supervisor.spawn(self._unload(model), f"unload {model}")

    # --- before it is asked for ---------------------------------------------------------------------------------------

    async def prepare(self, model_types: Collection[str]) -> None:
        """See `Runtime.prepare`: imports what they need into one worker each, as far as memory is free."""
        known = formats()
        wanted = {model_type.lower() for model_type in model_types}
        for format in [known[name] for name in sorted(wanted & known.keys())]:
            seats = self._ready_seats()
            if any(format in seat.formats_soon for seat in seats):
                continue
            place = self._choose(seats, format)
            if place is not None:
                await self._import(seats[place], format)

    def _again(self, seat: Seat) -> None:
        """A worker took the place of one that died: what that had imported is needed again, by the models that were there."""
        if seat.former:
            self._supervisor.spawn(self._import_again(seat, seat.former), f"{seat.name} imports")

    async def _import_again(self, seat: Seat, former: Sequence[Format]) -> None:
        for format in former:
            await self._import(seat, format)

    async def _import(self, seat: Seat, format: Format) -> None:
        if self._facts.base_bytes(format, seat.formats) > self._meter.free_bytes():
            return
        try:
            await self._loader.prepare(seat, format)
        except (LoadFailed, WorkerDied) as error:
            log.warning("%s could not import %s before it is needed: %s", seat.name, format.name, error)
        except Hung as hung:
            self._replacing.hung(seat, f"the import of {format.name} never ended")
            log.warning("%s could not import %s: %s", seat.name, format.name, hung)
        self._tell(f"{seat.name} imported {format.name}")

    # --- estimates ---------------------------------------------------------------------------------------------------

    async def estimate(self, spec: ModelSpec) -> Estimate:
        """See `Runtime.estimate`."""
        return self._estimate(spec, await self._examinations.of(spec))

    def estimate_now(self, spec: ModelSpec) -> Estimate | None:
        """See `Runtime.estimate_now`."""
        examined = self._examinations.remembered(spec)
        try:
            return None if examined is None else self._estimate(spec, examined)
        except ModelMeshError:
            return None

    def _estimate(self, spec: ModelSpec, examined: Examined) -> Estimate:
        format = examined.format
        content = self._sizes.content_of(examined)
        known = self._sizes.measured(content)
        weight = known or self._sizes.predicted(format, examined.size_bytes)
        alone = self._quarantine.runs_alone(spec.id, self._clock.monotonic_s())
        base_bytes = self._own_worker_bytes(format) if alone else self._base_bytes(spec, format)
        room_bytes = self._meter.capacity_bytes() - base_bytes
        least_bytes = known.size_bytes if known is not None else min(examined.size_bytes, weight.size_bytes)
        if least_bytes > room_bytes:
            raise self._too_large(spec, least_bytes, base_bytes, alone=alone)
        size_bytes = min(weight.size_bytes, room_bytes)
        free_bytes = room_bytes - self._meter.unattributed_bytes()
        if weight.peak_bytes > free_bytes:
            self._meter.press()
        return Estimate(
            size_bytes=size_bytes,
            peak_bytes=max(size_bytes, min(weight.peak_bytes, free_bytes)),
            base_bytes=base_bytes,
            load_s=weight.load_s,
            content=content,
        )

    def _own_worker_bytes(self, format: Format) -> int:
        return self._facts.idle_base_bytes() + self._facts.base_bytes(format, ())

    def _base_bytes(self, spec: ModelSpec, format: Format) -> int:
        """What the worker that would be chosen grows by; asked of one load only, for the others find it imported."""
        seats = self._regular_seats()
        place = self._choose(seats, format)
        base_bytes = 0 if place is None else self._facts.base_bytes(format, seats[place].formats_soon)
        if base_bytes == 0:
            return 0
        now_s = self._clock.monotonic_s()
        model, until_s = self._promised.get(format, ("", 0.0))
        if model not in ("", spec.id) and now_s < until_s:
            return 0
        self._promised[format] = (spec.id, now_s + PROMISE_S)
        return base_bytes

    def _too_large(self, spec: ModelSpec, size_bytes: int, base_bytes: int, *, alone: bool) -> ModelMeshError:
        """A guess alone refuses nothing: it is tried with all the room there is, and its measured size decides."""
        bases_bytes = self._config.budget_bytes - self._meter.capacity_bytes() + base_bytes
        enough = _mib(bases_bytes + size_bytes)
        if alone:
            return Quarantined(
                f"Model {spec.id} killed its worker and has to run alone, but there is no room for a worker of its own "
                f"({_mib(base_bytes + size_bytes)}): {enough} of memory would do.",
                model=spec.id,
            )
        return ModelTooLarge(
            f"Model {spec.id} needs about {_mib(size_bytes)}, but of the budget of {_mib(self._config.budget_bytes)} the "
            f"workers themselves take {_mib(bases_bytes)}: at least {enough} of memory would do.",
            model=spec.id,
        )

    # --- loads -------------------------------------------------------------------------------------------------------

    async def load(self, spec: ModelSpec, estimate: Estimate) -> Loaded:
        """See `Runtime.load`. When it is cancelled, the load goes on unseen and is undone when it is done."""
        self._quarantine.check(spec.id, self._clock.monotonic_s())
        if self._stopped:
            raise RuntimeUnavailable("The server stops.", model=spec.id)
        order = _Order(spec, asyncio.get_running_loop().create_future())
        order.task = asyncio.create_task(self._fulfil(order, estimate), name=f"load {spec.id}")
        self._orders[spec.id] = order
        try:
            return await order.outcome
        except asyncio.CancelledError:
            order.unwanted = True
            raise

    async def _fulfil(self, order: _Order, estimate: Estimate) -> None:
        try:
            loaded = await self._load(order.spec, may_import=estimate.base_bytes > 0)
            if order.unwanted:
                await self._unload(order.spec.id)
            elif not order.outcome.done():
                order.outcome.set_result(loaded)
        except asyncio.CancelledError:
            order.outcome.cancel()
            raise
        except Exception as error:
            if not order.outcome.done():
                order.outcome.set_exception(error)
        finally:
            if self._orders.get(order.spec.id) is order:
                del self._orders[order.spec.id]

    async def _load(self, spec: ModelSpec, *, may_import: bool) -> Loaded:
        try:
            for _ in range(ATTEMPTS):
                examined = await self._examinations.of(spec)
                seat = await self._choose_seat(spec, examined.format, may_import=may_import)
                worker = seat.worker
                try:
                    return await self._load_into(seat, spec, examined)
                except FilesChanged:
                    self._examinations.forget(spec)
                except WorkerDied:
                    self._find_fault(spec, worker)
        except LoadFailed:
            self._examinations.forget(spec)
            raise
        finally:
            for format in [format for format, (model, _) in self._promised.items() if model == spec.id]:
                del self._promised[format]
        raise LoadFailed(
            f"Model {spec.id} could not be loaded in {ATTEMPTS} attempts: each time its files changed meanwhile, or its worker "
            "ended for other reasons than this model.",
            code=Code.UNAVAILABLE,
            model=spec.id,
        )

    async def _load_into(self, seat: Seat, spec: ModelSpec, examined: Examined) -> Loaded:
        try:
            placed, measured = await self._loader.load(seat, spec, examined)
        except Hung as hung:
            if hung.loading and await self._examinations.hangs(spec):
                self._wait_for_storage(seat, spec)
                raise LoadFailed(
                    f"{hung.error} Its storage does not answer.", code=Code.UNAVAILABLE, model=spec.id
                ) from hung
            if hung.loading:
                self._supervisor.strike(spec.id, "its load never ended", alone=bool(seat.alone_for))
            self._replacing.hung(seat, f"the load of {spec.id} never ended")
            raise hung.error from hung
        except LoadFailed:
            if seat.alone_for:
                await self._supervisor.end_seat(seat, 0.0, f"{spec.id} could not be loaded")
            raise
        return Loaded(
            size_bytes=seat.account.charges[spec.id].size_bytes,
            measured=measured,
            load_s=placed.load_s,
            content=placed.content,
            replicas=(placed.replica,),
            capacity_bytes=self._meter.adopted(),
            sizing_s=placed.sizing_s,
        )

    def _wait_for_storage(self, seat: Seat, spec: ModelSpec) -> None:
        """A load hangs because its storage does: the model is not to blame, and what its worker has loaded could not be loaded
        again elsewhere. So it goes on serving, and is replaced when the storage is back: nobody waits for that load any more."""
        self._events.put(
            Noted(
                Did.WARNED,
                spec.id,
                f"The storage of {spec.path} does not answer: {seat.name} serves on, and loads nothing until it does.",
            )
        )
        after = partial(self._examinations.wait_answer, spec)
        self._replacing.hung(seat, f"the load of {spec.id} hung with its storage", after)

    def _find_fault(self, spec: ModelSpec, worker: WorkerProcess | None) -> None:
        """Returns when the worker's death was not this model's doing. Raises Quarantined or LoadFailed when it was."""
        death = worker.buried.result() if worker is not None and worker.buried.done() else None
        if death is not None and death.blames_models and spec.id in death.suspects:
            self._quarantine.check(spec.id, self._clock.monotonic_s())
            raise LoadFailed(
                f"The worker died while model {spec.id} was loading: {death.reason}. Next time it gets a worker of its own.",
                code=Code.UNAVAILABLE,
                model=spec.id,
            )

    async def _choose_seat(self, spec: ModelSpec, format: Format, *, may_import: bool) -> Seat:
        if self._quarantine.runs_alone(spec.id, self._clock.monotonic_s()):
            return await self._supervisor.add_seat(alone_for=spec.id)
        if not (ready := self._ready_seats()):
            await self._supervisor.wait_ready(self._config.load_timeout_s)
            ready = self._ready_seats()
        having = [seat for seat in ready if format in seat.formats_soon]
        seats = ready if may_import or not having else having
        place = self._choose(seats, format)
        if place is None:
            raise RuntimeUnavailable("No worker is ready.", model=spec.id)
        return seats[place]

    def _choose(self, seats: Sequence[Seat], format: Format) -> int | None:
        if len(seats) == 1:
            return 0
        candidates = [self._candidate(seat, format) for seat in seats]
        return choose(candidates, self._meter.share_bytes(), self._meter.capacity_bytes())

    def _choose_replica(self, seats: Sequence[Seat], placed: Placed) -> Seat | None:
        place = self._choose(seats, placed.format)
        return None if place is None else seats[place]

    def _candidate(self, seat: Seat, format: Format) -> Candidate:
        return Candidate(
            charged_bytes=seat.account.charged_bytes,
            new_base_bytes=self._facts.base_bytes(format, seat.formats_soon),
            busy=seat.busy,
            loading=seat.loading is not None,
            n_models=len(seat.models),
        )

    def _regular_seats(self) -> list[Seat]:
        return [seat for seat in self._supervisor.seats if not seat.alone_for and not seat.closed]

    def _ready_seats(self) -> list[Seat]:
        return [seat for seat in self._regular_seats() if seat.ready]

    # --- unloads and the rest ------------------------------------------------------------------------------------------

    async def unload(self, model: str) -> None:
        """See `Runtime.unload`. A load that nobody waits for any more is waited for and undone."""
        order = self._orders.get(model)
        if order is not None and order.task is not None:
            order.unwanted = True
            with contextlib.suppress(Exception):
                await asyncio.shield(order.task)
        if self._replacing.moving == model:
            async with self._replacing.move:
                pass
        await self._unload(model)

    async def _unload(self, model: str) -> None:
        for seat in [seat for seat in self._supervisor.seats if model in seat.models]:
            try:
                await self._loader.unload(seat, model)
            except RuntimeUnavailable:
                self._replacing.hung(seat, f"it did not answer to the unload of {model}")
                raise
            if seat.alone_for:
                await self._supervisor.end_seat(seat, 1.0, f"{model}, which had it alone, was unloaded")

    def target_reached(self, target_id: int, reached: bool) -> None:
        """See `Runtime.target_reached`."""
        self._supervisor.target_reached(target_id, reached)

    async def next_events(self) -> list[RuntimeEvent]:
        """See `Runtime.next_events`."""
        return await self._events.take()

    def memory(self) -> Sequence[tuple[str, int, int, int]]:
        """Per worker: (name, PSS bytes, base bytes, charged bytes), as last read."""
        return [
            (seat.name, seat.account.footprint.pss_bytes, seat.account.base_bytes, seat.account.charged_bytes)
            for seat in self._supervisor.seats
        ]

    async def stop(self, grace_s: float) -> None:
        """See `Runtime.stop`."""
        if self._stopped:
            return
        self._stopped = True
        orders = [order.task for order in self._orders.values() if order.task is not None]
        for task in orders:
            task.cancel()
        await asyncio.gather(*orders, return_exceptions=True)
        await self._supervisor.stop(grace_s)
        self._examinations.stop()
        await asyncio.to_thread(self._facts.save)


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f} MiB"
