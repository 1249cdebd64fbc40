"""What the runtime reports without being asked: servers come and go, copies vanish, move and are measured."""

from __future__ import annotations

from collections.abc import Callable

from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.budget import Budget
from modelmesh.mesh.cache.copies import Copies, Copy
from modelmesh.mesh.cache.evictions import Evictions
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.measures import Measures
from modelmesh.mesh.views import State
from modelmesh.runtime.protocol import (
    CapacityChanged,
    CopyLost,
    Noted,
    ReplicasChanged,
    RuntimeEvent,
    SizeChanged,
    TargetsChanged,
    UnloadGivenUp,
)
from modelmesh.settings.sizes import format_size


class RuntimeEvents:
    """Of one runtime. `on_gone` is told of a copy that was lost, `on_measured` of one whose size is known now."""

    def __init__(
        self,
        budget: Budget,
        copies: Copies,
        evictions: Evictions,
        failures: Failures,
        journal: Journal,
        measures: Measures,
        *,
        on_gone: Callable[[Copy], None],
        on_measured: Callable[[Copy], None],
    ) -> None:
        self._budget = budget
        self._copies = copies
        self._evictions = evictions
        self._failures = failures
        self._journal = journal
        self._measures = measures
        self._on_gone = on_gone
        self._on_measured = on_measured

    def handle(self, event: RuntimeEvent) -> None:
        """Act on one event; the caller settles afterwards."""
        match event:
            case TargetsChanged():
                self._copies.change_targets(event)
                self._budget.n_targets += len(event.add) - len(event.remove)
            case CapacityChanged():
                if event.capacity_bytes > self._budget.ledger.capacity_bytes:
                    self._failures.forget_too_large()
                self._budget.ledger.adopt(event.capacity_bytes, event.unattributed_bytes)
            case Noted():
                self._journal.record(event.did, event.model, event.reason)
            case CopyLost():
                self._copy_lost(event)
            case SizeChanged():
                self._resized(event)
            case UnloadGivenUp():
                self._measures.count("modelmesh_unloadmodel_failure")
            case ReplicasChanged():
                copy = self._own(event.model)
                if copy is not None and copy.state is State.LOADED:
                    self._copies.set_replicas(copy, event.replicas)
                    self._grow(copy, event.size_bytes)
                    self._evictions.moved(copy)

    def _own(self, model: str) -> Copy | None:
        """The copy of a model, if it is this runtime's."""
        copy = self._copies.get(model)
        return copy if copy is not None and copy.budget is self._budget else None

    def _copy_lost(self, event: CopyLost) -> None:
        copy = self._own(event.model)
        if copy is None or copy.state is not State.LOADED:
            return
        self._measures.count("modelmesh_copies_lost")
        self._journal.record(
            Did.LOST,
            event.model,
            f"The copy is lost ({event.reason}); {format_size(copy.size_bytes)} are free, and it loads again when "
            "asked for.",
            size_bytes=copy.size_bytes,
        )
        self._evictions.lost(copy)
        self._copies.lost(copy)
        self._on_gone(copy)

    def _resized(self, event: SizeChanged) -> None:
        if event.sizing_s > 0:
            self._measures.observe("modelmesh_model_sizing_milliseconds", event.sizing_s * 1000, event.model)
        copy = self._own(event.model)
        if copy is None or copy.state not in (State.LOADED, State.UNLOADING):
            return
        self._grow(copy, event.size_bytes)
        copy.measured = True
        self._on_measured(copy)

    def _grow(self, copy: Copy, size_bytes: int) -> None:
        before_bytes = copy.size_bytes
        if size_bytes != before_bytes:
            self._copies.resize(copy, size_bytes)
            self._evictions.resized(copy, before_bytes)
