"""The JSON of instances, as `ops.schemas` for the rest of the admin API."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from pydantic import Field

from modelmesh.mesh.views import InstanceView, MemberView
from modelmesh.ops.schemas import Answer


class Ledger(Answer):
    """The account of bytes of models."""

    capacity_bytes: int
    loaded_bytes: int
    loading_bytes: int
    unloading_bytes: int
    unattributed_bytes: int = Field(description="Memory of the workers that belongs to no model.")
    free_bytes: int = Field(description="Negative: in overdraft, nothing is admitted.")


class Worker(Answer):
    """One worker process."""

    name: str
    pss_bytes: int = Field(description="Proportional set size, what it really uses.")
    base_bytes: int = Field(description="What it weighs without models.")
    charged_bytes: int = Field(description="What its models are charged.")


class Addresses(Answer):
    """Where the instance listens; empty: not at all."""

    grpc: str = Field(description="host:port")
    rest: str = Field(description="URL")
    ops: str = Field(description="URL")


class Instance(Answer):
    """The instance at a glance. Totals count since its start."""

    id: str
    version: str
    pid: int
    started_unix_s: float
    ready: bool
    draining: bool
    cordoned: bool = Field(description="Nothing new is placed here.")
    addresses: Addresses
    folder: str = Field(description="The folder served, or empty.")
    budget_bytes: int = Field(description="What the workers may use in all.")
    ledger: Ledger
    workers: Sequence[Worker]
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
    requests_total: int
    in_flight: int
    parked: int = Field(description="Requests that wait for a model.")
    thrashing: str = Field(description="A sentence when the working set does not fit, else empty.")
    eviction_policy: str

    @classmethod
    def of(
        cls,
        view: InstanceView,
        memory: Sequence[tuple[str, int, int, int]],
        addresses: Addresses,
        **more: Any,
    ) -> Instance:
        ledger = view.ledger
        return cls.model_construct(
            addresses=addresses,
            ledger=Ledger.model_construct(
                capacity_bytes=ledger.capacity_bytes,
                loaded_bytes=ledger.loaded_bytes,
                loading_bytes=ledger.loading_bytes,
                unloading_bytes=ledger.unloading_bytes,
                unattributed_bytes=ledger.unattributed_bytes,
                free_bytes=ledger.free_bytes,
            ),
            workers=[
                Worker.model_construct(name=name, pss_bytes=pss, base_bytes=base, charged_bytes=charged)
                for name, pss, base, charged in memory
            ],
            started_unix_s=view.started_wall_s,
            **_same_in_view(view),
            **more,
        )


def _same_in_view(view: InstanceView) -> dict[str, Any]:
    return {
        name: getattr(view, name)
        for name in InstanceView.__slots__
        if name in Instance.model_fields and name != "ledger"
    }


class MeshInstance(Answer):
    """An instance of the mesh, as it told of itself a moment ago. Totals count since its start."""

    id: str
    here: bool = Field(description="It is the one that answers.")
    address: str = Field(description="Of its peer port; empty where there are no others.")
    zone: str
    host: str
    labels: Sequence[str]
    version: str
    revision: str
    started_unix_s: float
    capacity_bytes: int
    free_bytes: int = Field(description="Negative: in overdraft, or promised to what is queued.")
    price: float | None = Field(
        description="Seconds of loading per second and byte that an eviction there costs; 0 while memory is free, null when "
        "nothing may be evicted."
    )
    requests_per_s: float
    busyness: float = Field(description="Share of what it can serve at once, 0 to 1.")
    load_queue_s: float = Field(description="Seconds until a load asked for now would begin.")
    copies: int = Field(description="Loaded there.")
    loads_running: int
    loads_queued: int
    loads_total: int
    evictions_total: int
    draining: bool
    cordoned: bool = Field(description="Nothing new is placed there.")
    suspected: bool = Field(description="It does not answer.")
    told: bool = Field(description="False: only its record is known, so that the numbers mean nothing.")
    trouble: str = Field(description="Why it is not heard now, where that is known.")

    @classmethod
    def of(cls, view: MemberView) -> MeshInstance:
        same = {name: getattr(view, name) for name in MemberView.__slots__ if name in cls.model_fields}
        same["price"] = view.price if isfinite(view.price) else None
        return cls.model_construct(started_unix_s=view.started_wall_s, **same)


class MeshInstances(Answer):
    """All instances of the mesh, by id."""

    instances: Sequence[MeshInstance]
