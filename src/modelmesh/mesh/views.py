"""What the control plane shows of itself: frozen values for the faces (admin API, CLI, metrics, gRPC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from modelmesh.errors import Code
from modelmesh.registry.keep import NO_KEEP, Keep


class State(StrEnum):
    """A model in an instance, or in the mesh: that of its best copy."""

    COLD = "cold"
    QUEUED = "queued"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Failure:
    """A standing load failure. It stands until `expires_wall_s`; then the next request tries again."""

    reason: str
    code: Code
    at_wall_s: float
    expires_wall_s: float
    permanent: bool
    count: int


@dataclass(frozen=True, slots=True)
class CopyView:
    """A copy of a model, or what became of one. `at_wall_s`: when it was wanted, of a failed one when it failed."""

    instance: str
    state: State
    at_wall_s: float
    """0 when another instance holds it, which does not tell."""
    reason: str = ""
    """Why it failed, else empty."""
    size_bytes: int = 0
    """0 until it is loaded."""
    requests_per_s: float = 0.0
    last_used_wall_s: float = 0.0
    """0: never."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """A registered model, in the whole mesh; totals, replicas and what is in flight or waits are of this instance. `names` are
    the vmodels whose active model it is. `size_bytes` is measured when loaded, learned when known, else 0. `requests_per_s` is
    the expected rate; `last_used_wall_s` 0 means never."""

    id: str
    names: Sequence[str]
    type: str
    path: str
    state: State
    size_bytes: int
    size_measured: bool
    load_s: float
    requests_per_s: float
    requests_total: int
    last_used_wall_s: float
    loads_total: int
    replicas: int
    in_flight: int
    waiting: int
    pinned_by: str
    """Why it is held against eviction ("ensure loaded", "vmodel target", "vmodel active"), else empty."""
    failure: Failure | None
    keep: Keep = NO_KEEP
    copies: Sequence[CopyView] = ()
    """Those that are wanted, loading, loaded or failed: the one here, then the others' by instance."""


@dataclass(frozen=True, slots=True)
class SideView:
    """What happened to the requests of one of two models since a trial began, by whatever name they were asked for, at all
    instances that could be heard."""

    requests: int
    errors: int
    execution_s: float
    """Of one, on average, as its server reports; 0 when it does not."""


@dataclass(frozen=True, slots=True)
class CanaryView:
    """A target that is tried out on a share of the requests. `since_wall_s` 0: it is not loaded for that yet."""

    share: float
    for_s: float
    """How long at least; 0: until it had its requests."""
    requests: int
    """The least it must have served."""
    slower_max: float
    since_wall_s: float
    active: SideView | None
    target: SideView | None
    """None when it is not on trial."""
    outlook: str
    """How it stands, in a sentence; empty when it is not on trial."""


@dataclass(frozen=True, slots=True)
class VModelView:
    """A vmodel. `target` equals `active` when settled. `active` is empty only where a call waited for a vmodel that was
    deleted meanwhile."""

    id: str
    owner: str
    active: str
    target: str
    target_failed: bool
    reason: str
    """Why a target failed, else empty."""
    canary: CanaryView | None = None
    """While the target is tried out, or after that failed."""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The account of bytes. free = capacity − loaded − loading − unloading − unattributed, negative in overdraft."""

    capacity_bytes: int
    loaded_bytes: int
    loading_bytes: int
    unloading_bytes: int
    unattributed_bytes: int

    @property
    def free_bytes(self) -> int:
        return (
            self.capacity_bytes
            - self.loaded_bytes
            - self.loading_bytes
            - self.unloading_bytes
            - self.unattributed_bytes
        )


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """One runtime of the instance. No `model_types`: any. `reason`: why it does not run; empty while it runs or starts. `memory`
    per server: (name, PSS bytes, base bytes, charged bytes)."""

    name: str
    model_types: Sequence[str]
    labels: Sequence[str]
    running: bool
    reason: str
    ledger: LedgerView
    memory: Sequence[tuple[str, int, int, int]]


@dataclass(frozen=True, slots=True)
class InstanceView:
    """The instance at a glance. Totals count since its start; the ledger sums up those of its runtimes."""

    id: str
    version: str
    started_wall_s: float
    ready: bool
    draining: bool
    cordoned: bool
    ledger: LedgerView
    models_registered: int
    vmodels_registered: int
    models_loaded: int
    models_failed: int
    loads_queued: int
    loads_running: int
    loads_total: int
    load_failures_total: int
    evictions_total: int
    faults_total: int
    refusals_total: int
    thrashing: str
    """A sentence when the working set does not fit, with the bytes that would stop it; else empty."""
    eviction_policy: str
    """The policy that decides now: "rate-cost" or "lru" (the shadow took over); of several runtimes the different ones."""
    runtimes: Sequence[RuntimeView] = ()


@dataclass(frozen=True, slots=True)
class MemberView:
    """An instance of the mesh, as it told of itself a moment ago. Totals count since its start."""

    id: str
    here: bool
    """It is the one that answers."""
    address: str
    """Of its peer port; empty where there are no others."""
    zone: str
    host: str
    labels: Sequence[str]
    version: str
    revision: str
    started_wall_s: float
    capacity_bytes: int
    free_bytes: int
    """Negative: in overdraft, or promised to what is queued."""
    price: float
    """Seconds of loading per second and byte that evicting there costs; 0 while memory is free, infinite when nothing may be
    evicted."""
    requests_per_s: float
    busyness: float
    """Share of what it can serve at once, 0 to 1."""
    load_queue_s: float
    """Until a load asked for now would begin."""
    copies: int
    loads_running: int
    loads_queued: int
    loads_total: int
    evictions_total: int
    draining: bool
    cordoned: bool
    suspected: bool
    """It does not answer, though its lease lives; or the data plane cannot reach it."""
    told: bool
    """False: it is known by its record only, and nothing of its condition is."""
    trouble: str
    """Why it is not heard now, where that is known; else empty."""


@dataclass(frozen=True, slots=True)
class MeshCount:
    """The whole mesh in numbers, as far as this instance knows."""

    models: int
    models_loaded: int
    """With at least one loaded copy."""
    models_failed: int
    """With a standing load failure anywhere, loaded elsewhere or not."""
    vmodels: int
    copies: int
    """Loaded, all together."""
