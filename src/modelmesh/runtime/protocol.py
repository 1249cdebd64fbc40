"""The Runtime protocol: what the mesh asks of a model server, and what the server reports on its own.

A runtime does what it is told: load, unload. It answers with measured sizes and the replicas to route to, and reports
by events what happens without being asked. All bytes are of memory (PSS), never of disk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from modelmesh.dataplane.protocol import Replica, Target
from modelmesh.journal import Did
from modelmesh.policy.runtimes import Offer


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is loaded: a registered model. `path` is a local path for the built-in runtime, `key` the
    predecessor's modelKey JSON."""

    id: str
    type: str
    path: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What a started runtime offers. `capacity_bytes` is what models may use now; it moves (`CapacityChanged`)."""

    capacity_bytes: int
    max_loads: int
    """Loads that may run at once."""
    model_types: frozenset[str]
    load_timeout_s: float
    serves_versions: bool = False
    """Whether a version that is no vmodel of ours is the runtime's matter; else such a name means nothing."""
    replica_slots: int = 0
    """Requests (or batches) that a replica executes at once, where the servers report what each takes; 0: they do not, and
    replicas say what they take at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a load is expected to cost before it is tried. The mesh reserves `peak_bytes + base_bytes` and then calls load."""

    size_bytes: int
    """What the model will weigh: learned by content, else predicted from its files and format."""
    peak_bytes: int
    """The most it needs while loading; ≥ size_bytes."""
    base_bytes: int = 0
    """What the server itself will grow by (importing a format for the first time); charged to no model."""
    load_s: float = 0.0
    """Expected duration; 0 when unknown."""
    content: str = ""
    """A fingerprint of the content, equal for equal artefacts; empty when unknown before loading."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A finished load. `capacity_bytes` is the runtime's capacity after it (a base may have grown), so that the caller can
    release the reservation, charge the size and adopt the capacity in one step."""

    size_bytes: int
    measured: bool
    """False: `size_bytes` is provisional, a `SizeChanged` follows."""
    load_s: float
    content: str
    replicas: tuple[Replica, ...]
    capacity_bytes: int
    sizing_s: float = 0.0
    """What finding out the size took beside the load itself; 0: it was known, or is told later."""


class CopyLost(NamedTuple):
    """The model is gone from the runtime without having been asked (its worker died, it forgot). Its bytes are free."""

    model: str
    reason: str


class CapacityChanged(NamedTuple):
    """What models may use changed: `capacity_bytes` = budget − what the workers themselves weigh. `unattributed_bytes` is memory
    that belongs to no model, no base (measured PSS − bases − charges, never negative): the ledger counts it."""

    capacity_bytes: int
    unattributed_bytes: int
    reason: str


class SizeChanged(NamedTuple):
    """A provisional size was measured, or a model grew. `size_bytes` is that of all its replicas together."""

    model: str
    size_bytes: int
    sizing_s: float = 0.0
    """How long it took to find out; 0 where that is not told apart."""


class ReplicasChanged(NamedTuple):
    """The replicas of a loaded model moved (a worker was recycled), or it has more or fewer of them. The route must follow."""

    model: str
    replicas: tuple[Replica, ...]
    size_bytes: int
    """What they weigh together now."""


class UnloadGivenUp(NamedTuple):
    """The server did not unload the model in spite of several tries. What it holds counts as unattributed from now on."""

    model: str


class TargetsChanged(NamedTuple):
    """Model server processes came or went; the data plane must learn before routes name them."""

    add: tuple[Target, ...]
    remove: tuple[int, ...]


class Noted(NamedTuple):
    """Something worth a journal entry that needs no action: a worker started, a strike, a quarantine."""

    did: Did
    model: str
    reason: str


RuntimeEvent = (
    CopyLost | CapacityChanged | SizeChanged | ReplicasChanged | TargetsChanged | UnloadGivenUp | Noted
)


class Runtime(Protocol):
    """One owner, the event loop. Loads and unloads of one model are never overlapped by the caller."""

    def offer(self) -> Offer:
        """Its name, unique in the instance, the model types it serves (none: any) and its labels; the same before and after the
        start."""

    async def start(self) -> RuntimeInfo:
        """Start the servers. Raises RuntimeUnavailable, after which it may be called again, or SettingsError, with a sentence."""

    async def prepare(self, model_types: Collection[str]) -> None:
        """Do now what the first load of a model of these types would wait for beside the load itself. Types it does not serve are
        passed over. What cannot be done is left to that load; raises nothing."""

    async def estimate(self, spec: ModelSpec) -> Estimate:
        """Quick and without side effects. Raises LoadFailed when the artefact is plainly unusable (missing, unknown
        format), ModelTooLarge when it can never fit the budget, with the number that would do."""

    def estimate_now(self, spec: ModelSpec) -> Estimate | None:
        """The same where nothing has to be waited for; None where something has, or `estimate` would raise."""

    async def load(self, spec: ModelSpec, estimate: Estimate) -> Loaded:
        """Load one copy. Raises LoadFailed (the code says whether it is permanent), LoadTimeout, RuntimeUnavailable, Quarantined.
        When it raises or is cancelled, nothing of the model remains once `unload` has returned."""

    async def unload(self, model: str) -> None:
        """Returns when the memory has been given back (or cannot be). Unloading what is not loaded is no error."""

    def target_reached(self, target_id: int, reached: bool) -> None:
        """The data plane lost all connections to a target, or has one again. Targets of other runtimes are told too. A runtime
        that owns the process may replace it."""

    async def next_events(self) -> list[RuntimeEvent]:
        """Wait for at least one event; return all that wait, in order."""

    def memory(self) -> Sequence[tuple[str, int, int, int]]:
        """Per server: (name, PSS bytes, base bytes, charged bytes), as last measured; empty when it does not tell."""

    async def stop(self, grace_s: float) -> None:
        """Stop the servers, also a start that failed; after `grace_s` kill them. Nothing is left. Idempotent."""
