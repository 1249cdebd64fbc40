"""Events of the data plane: a request found no answer to "which model?" or "where?". All inline, no task per fault."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, assert_never

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import (
    Abandoned,
    DataPlane,
    Event,
    Fault,
    Name,
    NameKind,
    NotHere,
    Queueing,
    Retired,
    TargetBack,
    TargetLost,
)
from modelmesh.errors import ModelMeshError, ModelNotFound, QueueFull, StoreUnavailable
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.copies import Copies, Copy, Purpose, Want
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.cache.refusals import Refusals
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.measures import Measures
from modelmesh.mesh.names import Names
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State


class Faults:
    """Turns events into wants, revivals, routes and refusals; the caller settles afterwards."""

    def __init__(
        self,
        dataplane: DataPlane,
        registrar: Registrar,
        copies: Copies,
        names: Names,
        sites: Sites,
        failures: Failures,
        refusals: Refusals,
        clock: Clock,
        journal: Journal,
        measures: Measures,
        tuning: Tuning,
        *,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        settle: Callable[[], None],
        others: Others | None = None,
    ) -> None:
        self._dataplane = dataplane
        self._registrar = registrar
        self._copies = copies
        self._names = names
        self._sites = sites
        self._failures = failures
        self._refusals = refusals
        self._clock = clock
        self._journal = journal
        self._measures = measures
        self._tuning = tuning
        self._spawn = spawn
        self._settle = settle
        self._others = others
        self._unknown: dict[Name, int] = {}
        """Names to be confirmed as unknown, with how many wait."""
        self._confirming = False
        self._lost_targets: set[int] = set()
        self._stranded: dict[str, None] = {}
        """Loaded models whose requests find no usable replica: their targets are lost, or their route was late."""
        self.total = 0
        self.on_queueing: Callable[[Queueing], None] = lambda event: None
        """Called when requests wait for slots of a model."""

    def handle(self, events: Iterable[Event]) -> dict[str, None]:
        """Act on events in order. Returns the models newly waited for, whose deadlines are to be looked at."""
        told: list[Name] = []
        waited: dict[str, None] = {}
        for event in events:
            match event:
                case Fault():
                    self.total += 1
                    self._measures.count("modelmesh_faults")
                    self._journal.asked(event.model or event.name.name, dict(event.told))
                    if event.model:
                        self._model_fault(event)
                        waited[event.model] = None
                    else:
                        self._name_fault(event, told, waited)
                case Abandoned():
                    self._abandoned(event)
                case Retired():
                    for site in self._sites:
                        site.evictions.retired(event)
                case NotHere():
                    self._not_here(event)
                case TargetLost():
                    self._lost_targets.add(event.target_id)
                    self._tell_reached(event.target_id, reached=False)
                case TargetBack():
                    self._lost_targets.discard(event.target_id)
                    self._tell_reached(event.target_id, reached=True)
                    self._reopen()
                case Queueing():
                    self._measures.count("modelmesh_gate_queueing")
                    self.on_queueing(event)
                case _:
                    assert_never(event)
        self._names.tell(told)
        return waited

    def _tell_reached(self, target_id: int, *, reached: bool) -> None:
        if self._others is not None and self._others.reached(target_id, reached):
            return
        for site in self._sites:
            site.runtime.target_reached(target_id, reached)

    # --- names ----------------------------------------------------------------------------------------------

    def _name_fault(self, fault: Fault, told: list[Name], waited: dict[str, None]) -> None:
        model = self._names.resolve(fault.name)
        if model is None:
            self._unknown[fault.name] = fault.waiting
            self._confirm()
            return
        told.append(fault.name)
        if self._foreseen(model, fault):
            waited[model] = None

    def _foreseen(self, model: str, fault: Fault) -> bool:
        """Whether a cold model is wanted here now; among others its keeper is asked instead. Those who asked for its name fault
        on it next; its load need not wait for that. What cannot be loaded is refused then, not here."""
        record, others = self._registrar.mirror.model(model), self._others
        if (
            record is None
            or self._copies.get(model) is not None
            or self._failures.standing(model) is not None
            or (others is not None and others.standing(model) is not None)
        ):
            return False
        latest_s = self._clock.monotonic_s() + fault.latest_deadline_in_ms / 1000
        if others is not None and others.see_to(model, fault.waiting, latest_s):
            return False
        try:
            loads = self._sites.loads_of(model, record, None)
        except ModelMeshError:
            return False
        want = loads.want(model, record)
        if want is None:
            return False
        _join(want, fault.waiting, latest_s)
        loads.changed(model)
        return True

    def _confirm(self) -> None:
        if self._unknown and not self._confirming:
            self._confirming = True
            self._spawn(self._confirm_unknown(), "confirm unknown names")

    async def _confirm_unknown(self) -> None:
        """A name is unknown only once the mirror has reached the store's present revision; all that wait share the read."""
        asked, self._unknown = self._unknown, {}
        error: ModelMeshError | None = None
        try:
            await self._registrar.wait_current(self._tuning.confirm_timeout_s)
        except StoreUnavailable as raised:
            error = raised
        finally:
            self._confirming = False
        told: list[Name] = []
        for name, waiting in asked.items():
            if self._names.resolve(name) is not None:
                told.append(name)
            elif error is None:
                self._names.refuse(name, self._names.not_found(name), waiting, self._tuning.unknown_cache_s)
            else:
                away = StoreUnavailable(
                    f"Whether {name.name} is registered is not known here, and the store cannot be asked: {error}",
                    model=name.name,
                    retry_after_s=1.0,
                )
                self._names.refuse(name, away, waiting, 0.0)
        self._names.tell(told)
        self._confirm()
        self._settle()

    # --- models ---------------------------------------------------------------------------------------------

    def _model_fault(self, fault: Fault) -> None:
        name, model = fault.name, fault.model
        resolved = self._names.resolve(name)
        if resolved is not None and resolved != model:
            self._names.tell([name])
        latest_s = self._clock.monotonic_s() + fault.latest_deadline_in_ms / 1000
        self.wanted(model, fault.waiting, latest_s)

    def wanted(self, model: str, waiting: int, latest_deadline_s: float) -> None:
        """Requests wait for a model."""
        record = self._registrar.mirror.model(model)
        if record is None:
            self._refusals.model(model, ModelNotFound.named(model), None, waiting)
            return
        copy = self._copies.get(model)
        if copy is not None and copy.state is State.LOADED and self._serve(copy, waiting, latest_deadline_s):
            return
        absent = copy is None or copy.state in (State.UNLOADING, State.LOADED)
        if absent and self._others is not None and self._others.see_to(model, waiting, latest_deadline_s):
            return
        standing = self._failures.standing(model)
        if standing is not None and (copy is None or copy.state is State.UNLOADING):
            self._refusals.model(model, standing.error, standing, waiting)
            return
        try:
            loads = self._sites.loads_of(model, record, copy)
        except ModelMeshError as error:
            self._refusals.model(model, error, None, waiting)
            return
        want = loads.want(model, record)
        if want is None:
            full = QueueFull(
                f"{loads.n_queued} models wait to be loaded, more are not accepted: model {model} is refused.",
                model=model,
                retry_after_s=1.0,
            )
            self._refusals.model(model, full, None, waiting)
            return
        _join(want, waiting, latest_deadline_s)
        loads.changed(model)

    def _serve(self, copy: Copy, waiting: int, latest_deadline_s: float) -> bool:
        """A fault of a loaded copy: revive it, or publish its route again. False when it is leaving for good, so that the
        want stands until it is gone."""
        retirement = copy.retirement
        if retirement is not None:
            if retirement.purpose is not Purpose.ROOM:
                return False
            copy.history.record(self._clock.monotonic_s())
            self._sites.holding(copy).evictions.revive(
                copy, f"{waiting} request{'s' if waiting > 1 else ''} came for it meanwhile"
            )
            return True
        if self._copies.deserted(copy):
            self._lost(copy, "its model servers are gone, and nothing was said of it")
            return False
        _join(self._copies.want(copy, self._clock.monotonic_s()), waiting, latest_deadline_s)
        reachable = any(replica.target_id not in self._lost_targets for replica in copy.replicas)
        if copy.model not in self._stranded and reachable:
            self._copies.mark(copy)
        self._stranded[copy.model] = None
        return True

    def _abandoned(self, event: Abandoned) -> None:
        if not event.model:
            self._unknown.pop(event.name, None)
            return
        copy = self._copies.get(event.model)
        if self._others is not None:
            self._others.abandoned(event.model)
        if copy is not None and copy.state is State.LOADED and copy.retirement is None:
            copy.want = None
            self._stranded.pop(event.model, None)
        elif copy is not None:
            self._sites.holding(copy).loads.abandoned(event.model)

    def _not_here(self, event: NotHere) -> None:
        """The server holds this replica no more. The last one gone, the copy is unloaded, to be sure, and loads again when
        it is wanted."""
        if self._others is not None and self._others.not_here(event):
            return
        copy = self._copies.get(event.model)
        if copy is None or copy.state is not State.LOADED:
            return
        left = tuple(replica for replica in copy.replicas if replica.id != event.replica_id)
        if len(left) == len(copy.replicas):
            return
        if not left:
            self._lost(copy, f"the model server says it has no replica {event.replica_id}")
            return
        self._copies.set_replicas(copy, left)
        if copy.retirement is not None:
            self._sites.holding(copy).evictions.retired(
                Retired(event.replica_id, copy.retirement.token, True)
            )

    def _lost(self, copy: Copy, reason: str) -> None:
        """A copy is not where it should be: unload it, to be sure, and load it again when it is wanted."""
        self._measures.count("modelmesh_copies_lost")
        self._journal.record(
            Did.LOST, copy.model, f"The copy is lost: {reason}. It is loaded again when asked for."
        )
        self._stranded.pop(copy.model, None)
        self._sites.holding(copy).evictions.vanished(copy)

    # --- stranded -------------------------------------------------------------------------------------------

    def _reopen(self) -> None:
        """Publish again the routes of those whose requests wait though they are loaded."""
        for model in list(self._stranded):
            copy = self._copies.get(model)
            if copy is None or copy.state is not State.LOADED or copy.want is None:
                del self._stranded[model]
            elif any(replica.target_id not in self._lost_targets for replica in copy.replicas):
                self._copies.mark(copy)

    def refresh(self) -> None:
        """Compare with what the data plane says is waiting: more join and leave silently, and nothing may be forgotten."""
        now_s = self._clock.monotonic_s()
        rows = {row.model: row for row in self._dataplane.take_waiting()}
        for copy, want in self._copies.wanted():
            if not want.waiting and copy.model not in rows:
                continue
            row = rows.pop(copy.model, None)
            if row is None:
                self._abandoned(Abandoned(_NOBODY, copy.model))
            elif copy.state is State.LOADED and copy.retirement is None:
                want.waiting = row.waiting
                self._stranded[copy.model] = None
            else:
                want.latest_deadline_s = now_s + row.latest_deadline_in_ms / 1000
                if want.waiting != row.waiting:
                    want.waiting = row.waiting
                    self._sites.holding(copy).loads.changed(copy.model)
        for row in rows.values():
            self.wanted(row.model, row.waiting, now_s + row.latest_deadline_in_ms / 1000)
        self._reopen()


_NOBODY = Name(NameKind.MODEL, "")


def _join(want: Want, waiting: int, latest_deadline_s: float) -> None:
    want.waiting = max(waiting, 1)
    want.latest_deadline_s = max(want.latest_deadline_s, latest_deadline_s)
