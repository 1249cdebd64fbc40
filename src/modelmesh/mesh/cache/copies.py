"""The copies of this instance: one state per model, its bytes in the ledger, its route a projection of both.

Every change of state goes through a method here, which moves the ledger and the residents along, and marks the route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

from modelmesh.dataplane.protocol import Replica
from modelmesh.errors import InvariantBroken
from modelmesh.mesh.cache.budget import Budget
from modelmesh.mesh.cache.histories import Histories, History
from modelmesh.mesh.cache.holds import yields
from modelmesh.mesh.cache.routes import Routes
from modelmesh.mesh.views import State
from modelmesh.policy.eviction import Resident
from modelmesh.policy.urgency import Why
from modelmesh.registry.records import ModelRecord
from modelmesh.runtime.protocol import Estimate, Loaded, TargetsChanged


@dataclass(slots=True)
class Want:
    """Why a model is to be loaded, from the moment it is wanted until it is loaded, refused or abandoned."""

    since_s: float
    waiting: int = 0
    """Requests parked for it, as far as known."""
    latest_deadline_s: float = 0.0
    """When the last of them gives up."""
    suspicion: bool = False
    """All who want it urgently believe it to be loaded in an instance that does not answer."""
    asked: bool = False
    """Somebody asked for it to be loaded, or expects a retry: it stays wanted when no request waits."""
    late: bool = False
    """The data plane was told that not even the last of the waiting can be in time."""
    announced_s: float = 0.0
    """When the data plane was told that it can be ready; 0: not yet."""
    waiters: dict[asyncio.Future[None], Why] = field(default_factory=dict)
    """Calls that wait for the outcome, each with why it does: `URGENT` for requests of another instance."""

    @property
    def why(self) -> Why:
        if self.waiting:
            return Why.URGENT
        why = min(self.waiters.values(), default=Why.PREWARM)
        return min(why, Why.ASKED) if self.asked else why

    @property
    def unwanted(self) -> bool:
        """Nobody waits for it or asked for it."""
        return not (self.waiting or self.asked or self.waiters)

    @property
    def only_requests(self) -> bool:
        """Requests wait for it, and nobody asked for it here."""
        return bool(self.waiting) and not self.asked and not self.waiters

    @property
    def gentle(self) -> bool:
        """One of perhaps very many: such loads use half of the slots at most."""
        return self.suspicion or self.why >= Why.SCALE


class Purpose(StrEnum):
    """Why a copy retires."""

    ROOM = "room"
    """Others need its bytes; a new request revives it."""
    ASKED = "asked"
    """Somebody asked for the unload."""
    UNREGISTERED = "unregistered"


@dataclass(slots=True)
class Retirement:
    """A copy that is not acquired any more and waits for its requests to end. `pending`: replicas not yet clean."""

    token: int
    pending: set[int]
    purpose: Purpose
    reason: str
    since_s: float


def identity(record: ModelRecord) -> int:
    """Equal for records of the same artefact."""
    return hash((record.type, record.path, record.key))


class Copy(Resident):
    """A model in this instance. See `Copies` for what changes it."""

    __slots__ = (
        "began_s",
        "budget",
        "busy_s",
        "calling",
        "cancelled",
        "content",
        "estimate",
        "estimated_capacity_bytes",
        "execution_s",
        "held_bytes",
        "history",
        "holds",
        "identity",
        "keep",
        "measured",
        "needed_bytes",
        "order_sequence",
        "replicas",
        "resumed",
        "retirement",
        "set_aside_s",
        "state",
        "want",
    )

    def __init__(
        self,
        model: str,
        record: ModelRecord,
        history: History,
        now_s: float,
        want: Want,
        budget: Budget,
    ) -> None:
        super().__init__(model, 0, record.load_ms / 1000, history, now_s)
        self.budget = budget
        """Of the runtime that holds it."""
        self.identity = identity(record)
        """Of what was registered when it was queued: notices another artefact under the same id."""
        self.history = history
        self.began_s = now_s
        """When it was wanted first."""
        self.state = State.QUEUED
        self.want: Want | None = want
        self.replicas: tuple[Replica, ...] = ()
        self.holds: tuple[str, ...] = ()
        """Why it may not be evicted (`holds`)."""
        self.held_bytes = 0
        """Of its size, what its budget counts as held for good."""
        self.keep = record.keep
        self.priority = record.keep.priority
        self.retirement: Retirement | None = None
        self.estimate: Estimate | None = None
        self.estimated_capacity_bytes = 0
        """The capacity when it was estimated."""
        self.needed_bytes = 0
        """What its load must reserve; meaningful with an estimate."""
        self.set_aside_s = 0.0
        """Since when it could not be loaded whoever is evicted; 0 when it could."""
        self.measured = False
        self.content = ""
        self.resumed = 0
        """Requests that waited for this load: together one use, counted when it was loaded."""
        self.order_sequence = 0
        self.busy_s = 0.0
        """What its servers spent on its requests, as they report it."""
        self.execution_s = 0.0
        """Of one request, on average; 0 when it is not known."""
        self.calling = False
        """The runtime was asked to load it: a cancellation has something to stop."""
        self.cancelled = False

    @property
    def why(self) -> Why:
        """Why it is wanted; the least pressing reason when nobody does any more."""
        return Why.PREWARM if self.want is None else self.want.why

    @property
    def was_loaded(self) -> bool:
        """Whether it is or was a whole copy, no load that failed."""
        return self.size_bytes > 0

    @property
    def evictable(self) -> bool:
        return self.state is State.LOADED and self.retirement is None and not self.holds


class Copies:
    """The table of copies. Models without one are cold, whatever else is known of them."""

    def __init__(
        self, routes: Callable[[Callable[[str], Copy | None]], Routes], histories: Histories
    ) -> None:
        """`routes` makes the routes from the look-up of copies."""
        self._histories = histories
        self._table: dict[str, Copy] = {}
        self._holds: dict[str, tuple[str, ...]] = {}
        self._wanted: dict[str, None] = {}
        self.routes = routes(self._table.get)
        self._listeners: list[Callable[[str], None]] = []
        self.n_loaded = 0

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each model whose copy here is in another state, or held otherwise. It only takes a note."""
        self._listeners.append(listener)

    def get(self, model: str) -> Copy | None:
        return self._table.get(model)

    def __iter__(self) -> Iterator[Copy]:
        return iter(self._table.values())

    def __len__(self) -> int:
        return len(self._table)

    # --- states ---------------------------------------------------------------------------------------------

    def queue(self, model: str, record: ModelRecord, now_s: float, want: Want, budget: Budget) -> Copy:
        """cold -> queued, at the runtime of that budget."""
        if model in self._table:
            raise InvariantBroken(f"Model {model} has a copy already.", model=model)
        history = self._histories.take(model)
        copy = self._table[model] = Copy(model, record, history, now_s, want, budget)
        copy.holds = self.holds(model)
        self._wanted[model] = None
        self._tell(model)
        return copy

    def unqueue(self, copy: Copy) -> None:
        """queued -> cold."""
        self._expect(copy, State.QUEUED)
        self._drop(copy)

    def begin_loading(self, copy: Copy) -> bool:
        """queued -> loading, charged what the load needs; False, and nothing changed, when that is not free."""
        self._expect(copy, State.QUEUED)
        if not copy.budget.ledger.reserve(copy.model, copy.needed_bytes):
            return False
        copy.state = State.LOADING
        return True

    def loaded(self, copy: Copy, loaded: Loaded, now_s: float) -> None:
        """loading -> loaded: the measured size replaces the reservation, the route appears."""
        self._expect(copy, State.LOADING)
        copy.budget.ledger.settle(copy.model, loaded.size_bytes, loaded.capacity_bytes)
        copy.state = State.LOADED
        copy.size_bytes, copy.measured = loaded.size_bytes, loaded.measured
        copy.load_s, copy.content = loaded.load_s, loaded.content
        copy.replicas, copy.since_s = loaded.replicas, now_s
        copy.estimate = None
        copy.history.loads_total += 1
        self.n_loaded += 1
        self._place(copy)
        self.mark(copy)

    def begin_unload(self, copy: Copy) -> None:
        """loaded, or loading that failed -> unloading: still charged; the route is gone before the runtime hears of it."""
        if copy.state is State.LOADED:
            self.n_loaded -= 1
        elif copy.state is not State.LOADING:
            raise InvariantBroken(
                f"Model {copy.model} cannot be unloaded: it is {copy.state}.", model=copy.model
            )
        copy.budget.ledger.begin_unload(copy.model)
        copy.state, copy.retirement, copy.replicas = State.UNLOADING, None, ()
        self._place(copy)
        self.mark(copy)

    def unloaded(self, copy: Copy) -> None:
        """unloading -> cold: its bytes are free."""
        self._expect(copy, State.UNLOADING)
        copy.budget.ledger.release(copy.model)
        self._drop(copy)

    def lost(self, copy: Copy) -> None:
        """loaded -> cold without an unload: the runtime has it no more."""
        self._expect(copy, State.LOADED)
        self.n_loaded -= 1
        copy.budget.ledger.release(copy.model)
        copy.retirement = None
        self._drop(copy)

    # --- wants ----------------------------------------------------------------------------------------------

    def want(self, copy: Copy, now_s: float) -> Want:
        """The want of a copy, a new one where there is none."""
        if copy.want is None:
            copy.want = Want(now_s)
        self._wanted[copy.model] = None
        return copy.want

    def wanted(self) -> list[tuple[Copy, Want]]:
        """The copies somebody wants loaded, or waits for. Costs what is wanted, not what is loaded."""
        found = []
        for model in list(self._wanted):
            copy = self._table.get(model)
            if copy is None or copy.want is None:
                del self._wanted[model]
            else:
                found.append((copy, copy.want))
        return found

    # --- what changes within a state ------------------------------------------------------------------------

    def retire(self, copy: Copy, retirement: Retirement) -> None:
        self._expect(copy, State.LOADED)
        copy.retirement = retirement
        self._place(copy)

    def revive(self, copy: Copy) -> None:
        """Its retirement is off: publishing its route makes it acquirable again."""
        copy.retirement = None
        self._place(copy)
        self.mark(copy)

    def hold(self, model: str, reason: str) -> None:
        """Keep the model's copy from being evicted, also one yet to be loaded, until `unhold`. Idempotent."""
        reasons = self._holds.get(model, ())
        if reason not in reasons:
            self._set_holds(model, (*reasons, reason))

    def unhold(self, model: str, reason: str) -> None:
        """No error when it was not held for that reason."""
        reasons = self._holds.get(model, ())
        if reason in reasons:
            self._set_holds(model, tuple(other for other in reasons if other != reason))

    def holds(self, model: str) -> tuple[str, ...]:
        """Why a model is held; empty when it is not."""
        return self._holds.get(model, ())

    def _set_holds(self, model: str, reasons: tuple[str, ...]) -> None:
        if reasons:
            self._holds[model] = reasons
        else:
            del self._holds[model]
        copy = self._table.get(model)
        if copy is not None:
            copy.holds = reasons
            self._place(copy)

    def resize(self, copy: Copy, size_bytes: int) -> None:
        """A loaded or unloading copy weighs something else now."""
        copy.budget.ledger.resize(copy.model, size_bytes)
        copy.budget.residents.resize(copy, size_bytes)
        self._count_held(copy)

    def set_replicas(self, copy: Copy, replicas: tuple[Replica, ...]) -> None:
        copy.replicas = replicas
        self.mark(copy)

    def typical_bytes(self) -> int:
        """What a copy weighs on average, of a sample; 0 when there is none."""
        sizes = [copy.size_bytes for copy in islice(self._table.values(), 64) if copy.size_bytes]
        return sum(sizes) // len(sizes) if sizes else 0

    # --- routes ---------------------------------------------------------------------------------------------

    def mark(self, copy: Copy) -> None:
        """Project its route at the next `publish`."""
        self.routes.mark(copy.model)

    def publish(self) -> None:
        """See `Routes.publish`."""
        self.routes.publish()

    def change_targets(self, change: TargetsChanged) -> None:
        """See `Routes.change_targets`."""
        self.routes.change_targets(change)

    def deserted(self, copy: Copy) -> bool:
        """Whether all servers that held it are gone for good."""
        return self.routes.deserted(copy.replicas)

    # ---------------------------------------------------------------------------------------------------------

    def _place(self, copy: Copy) -> None:
        """Among the residents exactly when it is evictable."""
        self._tell(copy.model)
        self._count_held(copy)
        if copy.evictable and copy.index < 0:
            copy.budget.residents.add(copy)
        elif not copy.evictable:
            copy.budget.residents.discard(copy)

    def _count_held(self, copy: Copy) -> None:
        """Keep in step what its budget says of copies that may not be evicted."""
        budget = copy.budget
        held = copy.state is State.LOADED and bool(copy.holds)
        gives_way = held and copy.retirement is None and yields(copy.holds)
        held_bytes = copy.size_bytes if held and not gives_way else 0
        budget.held_bytes += held_bytes - copy.held_bytes
        copy.held_bytes = held_bytes
        budget.yielding_bytes -= budget.yielding.get(copy.model, 0)
        if gives_way:
            budget.yielding[copy.model] = copy.size_bytes
            budget.yielding_bytes += copy.size_bytes
        else:
            budget.yielding.pop(copy.model, None)

    def _drop(self, copy: Copy) -> None:
        del self._table[copy.model]
        copy.state = State.COLD
        self._count_held(copy)
        copy.budget.residents.discard(copy)
        self._histories.put(copy.model, copy.history)
        self.routes.drop(copy.model)
        self._tell(copy.model)

    def _tell(self, model: str) -> None:
        for listener in self._listeners:
            listener(model)

    def _expect(self, copy: Copy, state: State) -> None:
        if copy.state is not state or self._table.get(copy.model) is not copy:
            raise InvariantBroken(f"Model {copy.model} is {copy.state}, not {state}.", model=copy.model)
