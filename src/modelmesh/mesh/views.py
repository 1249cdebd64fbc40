"""What the control plane shows of itself: frozen values for the faces (admin API, CLI, metrics, gRPC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from modelmesh.errors import Code
from modelmesh.registry.keep import NO_KEEP, Keep


class State(StrEnum):
    """A model in this instance."""

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


@dataclass(frozen=True, slots=True)
class ModelView:
    """A registered model. `names` are the vmodels whose active model it is. `size_bytes` is measured when loaded, learned
    when known, else 0. `requests_per_s` is the expected rate; `last_used_wall_s` 0 means never."""

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
    """Those that are wanted, loading, loaded or failed, the newest first."""


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
