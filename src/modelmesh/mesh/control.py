"""What the faces may ask of the control plane. Implemented by `mesh.mesh.Mesh`; names follow `mmesh.ModelMesh`.

A *name* here is what a user types: a vmodel or a model, looked up in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from modelmesh.errors import ModelMeshError
from modelmesh.journal import Journal
from modelmesh.mesh.recollection import Story
from modelmesh.mesh.views import InstanceView, MemberView, MeshCount, ModelView, State, VModelView
from modelmesh.peers.protocol import Order
from modelmesh.registry.keep import AS_IT_IS, KeepChange
from modelmesh.registry.records import Canary


@dataclass(frozen=True, slots=True)
class Registration:
    """A model to register. Empty path and key are stored as absent."""

    id: str
    type: str
    path: str = ""
    key: str = ""
    last_used_ms: int = 0
    """When it was last used, as far as the caller knows (Unix epoch); 0: never. A model registered already is raised to
    it only when that is news of more than an hour."""
    keep: KeepChange = AS_IT_IS
    """How it is kept; of a model registered already what is given here is changed."""


Admit = Callable[[Registration], Registration]
"""Checks a registration against the model root. May read the disk, so it is called in a thread; raises FailedPrecondition."""


class Sort(StrEnum):
    """The order of a list of models. All but the first have the highest number first, and leave out cold models."""

    ID = "id"
    RATE = "rate"
    SIZE = "size"
    USED = "used"
    """The last use, the latest first."""
    COPIES = "copies"


@dataclass(frozen=True, slots=True)
class Query:
    """Which models of the mesh, and in which order. With `instance` only what that one holds or failed to load, by the states
    and numbers there. `after` is the `next_after` of the page before."""

    prefix: str = ""
    state: State | None = None
    instance: str = ""
    sort: Sort = Sort.ID
    after: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Page:
    """`next_after` is the `after` of the next page, or empty at the end. `total` counts all matches. Where the order is by a
    number that changes meanwhile, a model may be on two pages or on none."""

    models: Sequence[ModelView]
    next_after: str
    total: int


class ControlPlane(Protocol):
    """Errors are those of `modelmesh.errors`: InvalidInput, ModelNotFound, AlreadyExists, FailedPrecondition, …"""

    @property
    def journal(self) -> Journal: ...

    async def register(
        self, registration: Registration, *, load_now: bool = False, sync: bool = False
    ) -> ModelView:
        """Idempotent for equal attributes, AlreadyExists otherwise; how it is kept may change. Survives kill -9 once returned.
        With `load_now` the load is started; with `sync` too it is awaited, and a failed load is no error: the view says so."""

    async def register_many(self, registrations: Sequence[Registration]) -> Sequence[ModelMeshError | None]:
        """One answer per registration, in order: None when registered. Batched into few commits."""

    async def keep(self, name: str, change: KeepChange) -> ModelView:
        """Change how a registered model is kept. Survives kill -9 once returned. ModelNotFound, InvalidInput."""

    async def unregister(self, model: str) -> None:
        """Unknown ids succeed. FailedPrecondition while vmodels refer to it. Its copy is unloaded after its requests."""

    async def status(self, model: str) -> ModelView:
        """The view of a concrete model; vmodels are not looked at. ModelNotFound only once this instance knows all that the
        store does, StoreUnavailable when that cannot be found out."""

    async def ensure(self, model: str, *, last_used_ms: int = 0, sync: bool = False) -> ModelView:
        """Have a concrete model loaded, and count it as used at `last_used_ms` (Unix epoch; 0: now). It is held until its first
        use unless that time is more than an hour ago. While a failure stands nothing is tried; the view tells it. With `sync`
        return when it is loaded; a caller that is cancelled leaves the load running. ModelNotFound, as `status`; LoadFailed,
        LoadTimeout, NoCapacity, RuntimeUnavailable."""

    async def load(self, name: str, *, timeout_s: float | None = None) -> ModelView:
        """Load it now and hold it until its first use. Returns when loaded. ModelNotFound, LoadFailed, LoadTimeout,
        NoCapacity."""

    async def unload(self, name: str, *, timeout_s: float | None = None) -> ModelView:
        """Unload it once its requests are done; it loads again when asked for. ModelNotFound."""

    def model(self, name: str) -> ModelView:
        """ModelNotFound when neither a vmodel nor a model has this name."""

    async def models(self, query: Query) -> Page:
        """A page of a list. InvalidInput, InstanceNotFound."""

    def servable(self, name: str, version: str = "") -> bool:
        """Whether it can be served: loaded, or registered and no failure keeps it from being tried. ModelNotFound. Loads
        nothing."""

    async def set_vmodel(
        self,
        vmodel: str,
        target: str,
        *,
        model: Registration | None = None,
        auto_delete_target: bool = False,
        load_now: bool = False,
        force: bool = False,
        sync: bool = False,
        expected_target: str = "",
        owner: str = "",
        update_only: bool = False,
        canary: Canary | None = None,
    ) -> VModelView:
        """The rules of reference mesh.md 9.2. With `sync` return when the transition ended, or a canary is on trial; a vmodel
        deleted meanwhile is answered by a view without an active model. LoadTimeout after four minutes."""

    async def delete_vmodel(self, vmodel: str, *, owner: str = "") -> None:
        """Unknown ids and other owners are silent successes (reference mesh.md 9.2)."""

    def vmodel(self, vmodel: str, *, owner: str = "") -> VModelView:
        """ModelNotFound."""

    def vmodels(self, *, prefix: str = "", after: str = "", limit: int = 100) -> Sequence[VModelView]: ...

    def instance(self) -> InstanceView: ...

    def members(self) -> Sequence[MemberView]:
        """The instances of the mesh, by id; this one too."""

    async def order(self, instance: str, order: Order) -> None:
        """Have an instance cordoned, uncordoned or drained; returns when that has begun. InstanceNotFound, FailedPrecondition,
        RuntimeUnavailable."""

    async def story(self, names: Sequence[str]) -> Story:
        """What the journals of all instances remember of these models and vmodels."""

    async def census(self) -> MeshCount | None:
        """The whole mesh in numbers, at most ten seconds old; None where another instance is the one to export them."""

    def memory(self) -> Sequence[tuple[str, int, int, int]]:
        """Per worker: (name, PSS bytes, base bytes, charged bytes); empty where the runtime does not tell."""
