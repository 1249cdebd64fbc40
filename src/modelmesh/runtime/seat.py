"""A seat: the place of one worker, which outlives the processes that sit in it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from modelmesh.dataplane.protocol import Replica
from modelmesh.runtime.memory import Account
from modelmesh.runtime.protocol import ModelSpec, ReplicasChanged
from modelmesh.runtime.worker_process import WorkerProcess
from modelmesh.worker.formats.protocol import Format


@dataclass(slots=True)
class Placed:
    """A loaded model. `learned` is False while its size is provisional."""

    spec: ModelSpec
    format: Format
    content: str
    replica: Replica
    peak_bytes: int
    load_s: float
    sizing_s: float
    """What measuring its size took beside that; 0: it was known."""


@dataclass(slots=True, eq=False)
class Seat:
    """A worker's place: its process of now (None while there is none), models, formats and account."""

    name: str
    alone_for: str = ""
    """The model this seat exists for, when it must run alone."""
    closed: bool = False
    """Being replaced or ended: nothing is loaded here any more."""
    worker: WorkerProcess | None = None
    target_id: int = 0
    reached: bool = True
    """Whether the data plane has a connection to it."""
    models: dict[str, Placed] = field(default_factory=dict)
    formats: list[Format] = field(default_factory=list)
    """Imported, in that order."""
    former: tuple[Format, ...] = ()
    """What the process before had imported."""
    importing: Format | None = None
    """Being imported now."""
    account: Account = field(default_factory=Account)
    loading: ModelSpec | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held for a load: one at a time."""
    changes: int = 0
    """Loads and unloads so far."""
    changes_measured: int = 0
    """Of those, how many at the last reading."""
    busy_s: float = 0.0
    busy: float = 0.0
    """Share of the time spent in models, between the last two readings."""
    shares: dict[str, float] = field(default_factory=dict)
    """The same by model, where it is not next to nothing."""
    readings: int = 0
    """How often that was read."""
    measured_at_s: float = 0.0
    started_at_s: float = 0.0
    failed_starts: int = 0
    measuring: asyncio.Task[None] | None = None
    """Its last question for measurements; a worker that holds the interpreter answers late."""
    empty_before: bool = False
    """Whether it held no model at the last answer either, so that free pages have been given back meanwhile."""
    kept_bytes: int = 0
    """Its own memory beyond base and charges between batches, at the last answer."""
    swollen_since_s: float | None = None
    """Since when its memory does not come back; None when all is well."""

    @property
    def ready(self) -> bool:
        """Whether a model may be loaded here now."""
        return self.worker is not None and self.worker.alive and not self.closed

    @property
    def empty(self) -> bool:
        """Whether it holds no model and loads none."""
        return not self.models and self.loading is None

    @property
    def formats_soon(self) -> list[Format]:
        """The formats that are imported once the running load is done."""
        return self.formats if self.importing is None else [*self.formats, self.importing]

    def vacate(self, next_base_bytes: int) -> list[str]:
        """The process is gone and all with it; what the next one will weigh stays reserved, if there is one. Returns the
        models that were lost."""
        lost = list(self.models)
        self.worker = None
        self.reached = True
        self.models.clear()
        self.former = tuple(self.formats)
        self.formats.clear()
        self.account = Account(base_anon_bytes=0 if self.closed or self.alone_for else next_base_bytes)
        self.busy_s = self.busy = 0.0
        self.shares = {}
        self.kept_bytes = 0
        self.empty_before = False
        self.swollen_since_s = None
        return lost


def weight_bytes(model: str, seats: Iterable[Seat]) -> int:
    """What the replicas of a model weigh together; 0 when there is none."""
    charges = (seat.account.charges.get(model) for seat in seats)
    return sum(charge.size_bytes for charge in charges if charge is not None)


def whereabouts(model: str, seats: Sequence[Seat]) -> ReplicasChanged | None:
    """The replicas of a model in these seats, for the mesh; None when there is none."""
    replicas = tuple(seat.models[model].replica for seat in seats if model in seat.models)
    return ReplicasChanged(model, replicas, weight_bytes(model, seats)) if replicas else None
