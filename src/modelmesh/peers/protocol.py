"""The Peers protocol: what the mesh sees of other instances, and what they ask of it. Values only.

Each instance tells all others what it holds: a snapshot, then deltas, with its epoch and a sequence that grows with each. So a
miss writes nothing to the store, a dead instance leaves nothing behind, and an outage of the store hides no copy
(design.md 7, 8). An instance is a `Member` while its lease in the store lives; it is gone for the others only when the lease is
gone *and* its connection is silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import NamedTuple, Protocol

from modelmesh.errors import Code
from modelmesh.policy.urgency import Why


@dataclass(frozen=True, slots=True)
class Member:
    """An instance as its record under `members/` says. Equal ids with another epoch are another life of it."""

    id: str
    epoch: int
    """Of this life, later ones are higher."""
    address: str
    """`host:port` of its peer port."""
    zone: str = ""
    host: str = ""
    """The machine it runs on: copies are spread over hosts after zones."""
    labels: frozenset[str] = frozenset()
    model_types: frozenset[str] = frozenset()
    """What its runtimes serve; empty: any."""
    version: str = ""
    revision: str = ""
    """Of its deployment; the newest is the one started last."""
    capacity_bytes: int = 0
    started_wall_ms: int = 0
    folder: str = ""
    """The folder it serves; all that serve one have to serve the same."""


class Held(NamedTuple):
    """A copy of an instance, or that it has none any more (`loaded` False and `loading` False)."""

    model: str
    loaded: bool
    loading: bool = False
    size_bytes: int = 0
    load_ms: int = 0
    rate_per_s: float = 0.0
    last_used_wall_ms: int = 0


class Failed(NamedTuple):
    """A load failure that stands there for another `expires_in_ms`; 0: it stands no more."""

    model: str
    code: Code
    message: str
    permanent: bool
    expires_in_ms: int


class Tally(NamedTuple):
    """What the copies of an instance served since the trial of a vmodel's canary began (`since_ms`, Unix epoch), of the active
    model and of the canary."""

    vmodel: str
    since_ms: int
    requests: int
    errors: int
    execution_ms: int
    canary_requests: int
    canary_errors: int
    canary_execution_ms: int


@dataclass(frozen=True, slots=True)
class Load:
    """How an instance is doing, about once a second."""

    capacity_bytes: int
    free_bytes: int
    price: float
    """Value per byte (seconds of loading per second and byte) of what it would evict next; 0 while memory is free, infinite when
    nothing may be evicted."""
    rate_per_s: float
    busyness: float
    """Share of its slots in use, 0 to 1."""
    load_queue_s: float
    """Expected seconds until a load asked for now would begin."""
    draining: bool = False
    cordoned: bool = False
    """Nothing new is placed there; what it holds is served."""
    copies: int = 0
    """Loaded there. These and what follows are told to people only; totals count since its start."""
    loads_running: int = 0
    loads_queued: int = 0
    loads_total: int = 0
    evictions_total: int = 0
    tallies: tuple[Tally, ...] = ()
    """Of some trials; of others the next time."""


@dataclass(frozen=True, slots=True)
class Update:
    """A piece of the stream. `begins`: forget all that was known of this instance, a snapshot follows. `complete`: the
    snapshot is whole with this piece, or it was before."""

    epoch: int
    sequence: int
    """That of the newest change in here."""
    begins: bool = False
    complete: bool = True
    held: tuple[Held, ...] = ()
    failed: tuple[Failed, ...] = ()
    load: Load | None = None


class Joined(NamedTuple):
    """An instance is there, or in another life, or its record changed."""

    member: Member


class Gone(NamedTuple):
    """An instance is gone: its lease and its connection, or it said goodbye. Nothing of it counts any more."""

    id: str


class Silent(NamedTuple):
    """An instance does not answer though its lease lives: it is suspected. It said nothing for 750 ms and its process answers no
    pings, or it said nothing for 5 s."""

    id: str


class Back(NamedTuple):
    """A suspected instance answers again."""

    id: str


class Told(NamedTuple):
    """An instance said something."""

    id: str
    update: Update


News = Joined | Gone | Silent | Back | Told


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked about a model, with what the asker knows of its use."""

    model: str
    deadline_s: float
    """Seconds from now until nobody waits any more."""
    need: Why
    """How pressing it is."""
    why: str
    """For the journal."""
    rate_per_s: float = 0.0
    last_used_wall_ms: int = 0
    tried: tuple[str, ...] = ()
    """Instances that failed, or are not to be chosen again."""
    hops: int = 0
    """How often it was handed on; the forward limit is 3."""
    until_used: bool = False
    """It is held where it is loaded until its first use."""
    suspicion: bool = False
    """It is believed to be loaded in an instance that does not answer: there may be very many of these."""
    execution_s: float = 0.0
    """Of one request, as the model server reports it; 0 when unknown."""
    copies: int = 1
    """So many loaded ones are wanted in all, in different instances."""
    worth_s: float = inf
    """A copy that costs more seconds of others' waiting than this is not wanted (`policy.placement`)."""


@dataclass(frozen=True, slots=True)
class Provided:
    """A copy is loaded in `holder`. It counts as news of that instance: newer than a denial with a lower sequence."""

    holder: str
    epoch: int
    sequence: int


class Order(StrEnum):
    """What an operator asks of an instance. Repeating one is harmless."""

    CORDON = "cordon"
    """Nothing new is placed there; what it holds is served."""
    UNCORDON = "uncordon"
    DRAIN = "drain"
    """Hand over what it alone holds, then take no more requests: what comes before a stop. Cannot be taken back."""


class Remembered(NamedTuple):
    """An entry of the journal of an instance. `did` is a word of `journal.Did`, or of a later version's."""

    sequence: int
    wall_s: float
    did: str
    model: str
    reason: str
    numbers: Mapping[str, float | int | str]


class Peers(Protocol):
    """The others. One owner, the event loop it was started on. Every ask has a deadline and raises RuntimeUnavailable when
    the other cannot be reached or does not answer in time, else what the other raised, with its code."""

    @property
    def me(self) -> Member:
        """This instance, as the others know it."""

    async def start(self, hosted: Hosted) -> None:
        """Become a member and follow the others; returns when those that are members now were heard or cannot be
        reached, or 5 s later."""

    async def next_news(self) -> list[News]:
        """Wait for at least one; return all that wait, in order."""

    def announce(
        self, held: Sequence[Held] = (), failed: Sequence[Failed] = (), load: Load | None = None
    ) -> int:
        """Tell all others; keeps the whole picture for those that come later. Returns the sequence."""

    def reached(self, id: str, reached: bool) -> None:
        """The data plane lost an instance (no connection, or no answer to its pings), or has it back: one that says nothing is
        suspected the sooner."""

    async def provide(self, id: str, ask: Ask) -> Provided:
        """Ask an instance, as the model's keeper, to have it loaded somewhere. One that is suspected has 250 ms to say something,
        else RuntimeUnavailable is raised. Raises LoadTimeout after the deadline."""

    async def load(self, id: str, ask: Ask) -> Provided:
        """Ask an instance to load the model itself. Raises LoadTimeout when that is not done until the deadline."""

    async def unload(self, id: str, model: str, why: str) -> None:
        """Ask an instance to give its copy up, when its requests are done."""

    async def recall(
        self, id: str, names: Sequence[str], limit: int, deadline_s: float
    ) -> Sequence[Remembered]:
        """Ask an instance what its journal remembers of these models and vmodels: the newest, oldest first."""

    async def order(self, id: str, order: Order) -> None:
        """Have an instance cordoned, uncordoned or drained. It has begun when this returns."""

    def trouble(self, id: str) -> str:
        """Why an instance is not heard now, in a sentence; empty when it is, or nothing is known."""

    async def update_member(self, **changes: object) -> None:
        """Change this instance's record (capacity, labels)."""

    async def stop(self) -> None:
        """Say goodbye, drop the lease. Idempotent."""


class Hosted(Protocol):
    """What the others ask of this instance: the mesh. Each raises a ModelMeshError, which travels with its code and message."""

    async def provide(self, asker: str, ask: Ask) -> Provided:
        """This instance is believed to be the keeper. Joins what runs; returns once a copy is loaded somewhere."""

    async def load(self, asker: str, ask: Ask) -> Provided:
        """Load the model here, or join its load; returns once it is loaded."""

    async def unload(self, asker: str, model: str, why: str) -> None:
        """Give the copy up. No error when there is none."""

    async def recall(self, asker: str, names: Sequence[str], limit: int) -> Sequence[Remembered]:
        """What the journal here remembers of them: the newest, oldest first."""

    async def order(self, asker: str, order: Order) -> None:
        """Begin what is ordered."""
