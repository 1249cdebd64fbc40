"""A control plane without a mesh: registrations and vmodels in dictionaries, loads that succeed at once.

For tests of the faces (ops, management, CLI). It keeps the promises of `mesh.control.ControlPlane` that a face can see;
what it does not do: memory, workers, waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from modelmesh.errors import (
    AlreadyExists,
    Code,
    FailedPrecondition,
    InstanceNotFound,
    InvalidInput,
    LoadFailed,
    ModelMeshError,
    ModelNotFound,
)
from modelmesh.journal import Did, Journal
from modelmesh.mesh.control import Page, Query, Registration, Sort
from modelmesh.mesh.recollection import Happened, Mute, Story
from modelmesh.mesh.views import (
    CanaryView,
    CopyView,
    Failure,
    InstanceView,
    LedgerView,
    MemberView,
    MeshCount,
    ModelView,
    RuntimeView,
    SideView,
    State,
    VModelView,
)
from modelmesh.peers.protocol import Order, Remembered
from modelmesh.registry.keep import KeepChange
from modelmesh.registry.records import Canary


class StoppedClock:
    """A clock that shows what it was set to."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s


class FakeControlPlane:
    """See the module docstring. `broken` maps a model to the sentence its loads fail with; `size_bytes` is every model's size,
    `served` the types that its runtime names; none: any."""

    def __init__(self, clock: StoppedClock | None = None, *, size_bytes: int = 1 << 20) -> None:
        self.clock = clock or StoppedClock()
        self._journal = Journal(self.clock)
        self.registered: dict[str, ModelView] = {}
        self.names: dict[str, VModelView] = {}
        self.broken: dict[str, str] = {}
        self.size_bytes = size_bytes
        self.ready = True
        self.draining = False
        self.loads_total = 0
        self.served: tuple[str, ...] = ()
        self.others: list[MemberView] = []
        """Other instances of the mesh, and which of all are cordoned."""
        self.cordoned: set[str] = set()
        self.tells_of_mesh = True
        self.remembered: dict[str, list[Remembered]] = {}
        """What the journals of other instances remember; of those that are not here, nothing can be learned."""

    @property
    def journal(self) -> Journal:
        return self._journal

    async def register(
        self, registration: Registration, *, load_now: bool = False, sync: bool = False
    ) -> ModelView:
        if not registration.id.strip():
            raise InvalidInput("A model needs an id that is not blank.")
        if not registration.type.strip():
            raise InvalidInput(f'Model "{registration.id}" needs a type.', model=registration.id)
        known = self.registered.get(registration.id)
        if known and (known.type, known.path) != (registration.type, registration.path):
            raise AlreadyExists(
                f'Model "{registration.id}" is registered with another type or path; unregister it first.',
                model=registration.id,
            )
        if not known:
            self.registered[registration.id] = ModelView(
                id=registration.id,
                names=(),
                type=registration.type,
                path=registration.path,
                state=State.COLD,
                size_bytes=0,
                size_measured=False,
                load_s=0.0,
                requests_per_s=0.0,
                requests_total=0,
                last_used_wall_s=registration.last_used_ms / 1000,
                loads_total=0,
                replicas=0,
                in_flight=0,
                waiting=0,
                pinned_by="",
                failure=None,
            )
            self._journal.record(Did.REGISTERED, registration.id, f"registered as {registration.type}")
        if registration.keep:
            await self.keep(registration.id, registration.keep)
        if load_now:
            try:
                return await self.load(registration.id)
            except LoadFailed:
                pass
        return self.model(registration.id)

    async def register_many(self, registrations: Sequence[Registration]) -> Sequence[ModelMeshError | None]:
        answers: list[ModelMeshError | None] = []
        for registration in registrations:
            try:
                await self.register(registration)
                answers.append(None)
            except ModelMeshError as error:
                answers.append(error)
        return answers

    async def keep(self, name: str, change: KeepChange) -> ModelView:
        view = self.model(name)
        self.registered[view.id] = replace(view, keep=change.applied(view.keep, view.id))
        return self.model(view.id)

    async def unregister(self, model: str) -> None:
        holders = [name for name, view in self.names.items() if model in (view.active, view.target)]
        if holders:
            raise FailedPrecondition(f'Model "{model}" is referred to by vmodel "{holders[0]}".', model=model)
        if self.registered.pop(model, None):
            self._journal.record(Did.UNREGISTERED, model, "unregistered")

    async def status(self, model: str) -> ModelView:
        if model not in self.registered:
            raise ModelNotFound.named(model)
        return self._view(model)

    async def ensure(self, model: str, *, last_used_ms: int = 0, sync: bool = False) -> ModelView:
        view = await self.status(model)
        used_s = last_used_ms / 1000 or self.clock.wall_s()
        self.registered[model] = replace(
            self.registered[model], last_used_wall_s=max(used_s, view.last_used_wall_s)
        )
        if view.state is not State.FAILED:
            await self._load(model)
        return self._view(model)

    async def load(self, name: str, *, timeout_s: float | None = None) -> ModelView:
        await self._load(self.model(name).id)
        return self.model(name)

    async def _load(self, model: str) -> None:
        view = self.registered[model]
        if view.id in self.broken:
            now_s = self.clock.wall_s()
            failure = Failure(self.broken[view.id], Code.INVALID_ARGUMENT, now_s, now_s + 60, True, 1)
            self.registered[view.id] = replace(view, state=State.FAILED, failure=failure)
            self._journal.record(Did.LOAD_FAILED, view.id, failure.reason)
            raise LoadFailed(failure.reason, code=failure.code, model=view.id)
        if view.state is not State.LOADED:
            self.loads_total += 1
            self._journal.record(Did.LOADED, view.id, "it was asked for", size_bytes=self.size_bytes)
            self.registered[view.id] = replace(
                view,
                state=State.LOADED,
                size_bytes=self.size_bytes,
                size_measured=True,
                replicas=1,
                loads_total=view.loads_total + 1,
                load_s=0.05,
                pinned_by="ensure loaded",
                failure=None,
            )

    async def unload(self, name: str, *, timeout_s: float | None = None) -> ModelView:
        view = self.model(name)
        if view.state is State.LOADED:
            self.registered[view.id] = replace(view, state=State.COLD, replicas=0, pinned_by="")
            self._journal.record(Did.UNLOADED, view.id, "it was asked for")
        return self.model(name)

    def model(self, name: str) -> ModelView:
        model = self.names[name].active if name in self.names else name
        if model not in self.registered:
            raise ModelNotFound(f'There is no model or vmodel "{name}".', model=name)
        return self._view(model)

    def _view(self, model: str) -> ModelView:
        view = self.registered[model]
        copies: tuple[CopyView, ...] = ()
        if view.state is not State.COLD:
            reason = view.failure.reason if view.failure else ""
            copies = (CopyView("fake", view.state, self.clock.wall_s(), reason),)
        names = tuple(v.id for v in self.names.values() if v.active == model)
        return replace(view, names=names, copies=copies)

    async def models(self, query: Query) -> Page:
        self._check_instance(query.instance)
        numbers: dict[Sort, Callable[[ModelView], float]] = {
            Sort.COPIES: lambda view: float(view.state is State.LOADED),
            Sort.RATE: lambda view: view.requests_per_s,
            Sort.SIZE: lambda view: float(view.size_bytes),
            Sort.USED: lambda view: view.last_used_wall_s,
        }
        number = numbers.get(query.sort)
        with_copies = bool(query.instance) or query.sort is not Sort.ID
        keys = sorted(
            (0.0 if number is None else -number(view), id)
            for id, view in self.registered.items()
            if id.startswith(query.prefix)
            and query.state in (None, view.state)
            and not (with_copies and view.state is State.COLD)
        )
        if query.sort is Sort.ID:
            rest = [key for key in keys if key[1] > query.after]
        else:
            negated, _, id = query.after.partition(" ")
            rest = [key for key in keys if not id or key > (float(negated), id)]
        shown = [self.model(id) for _, id in rest[: query.limit]]
        last = rest[len(shown) - 1] if len(rest) > query.limit else None
        after = "" if last is None else last[1] if query.sort is Sort.ID else f"{last[0]} {last[1]}"
        return Page(shown, after, len(keys))

    def _check_instance(self, instance: str) -> None:
        if instance not in ("", *(member.id for member in self.members())):
            raise InstanceNotFound.named(instance)

    def servable(self, name: str, version: str = "") -> bool:
        return self.model(f"{name}:{version}" if version else name).failure is None

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
        """As if every canary were on trial from the beginning, and nothing else took time."""
        known = self.names.get(vmodel)
        if model is not None:
            await self.register(model)
        if target not in self.registered:
            raise ModelNotFound(f'There is no model "{target}" for vmodel "{vmodel}".', model=target)
        if update_only and known is None:
            raise ModelNotFound(f'There is no vmodel "{vmodel}".', model=vmodel)
        if known and owner and known.owner != owner:
            raise AlreadyExists(f'Vmodel "{vmodel}" belongs to "{known.owner}".', model=vmodel)
        if expected_target and (known.target if known else target) not in (expected_target, target):
            raise FailedPrecondition(
                f'The target of vmodel "{vmodel}" is not "{expected_target}".', model=vmodel
            )
        owner = known.owner if known else owner
        if known is not None and canary is not None and target != known.active:
            canary.check()
            tried = CanaryView(
                canary.share, canary.for_ms / 1000, canary.requests, canary.slower_max, time.time(),
                SideView(0, 0, 0.0), SideView(0, 0, 0.0), "No request came yet.",
            )  # fmt: skip
            self.names[vmodel] = VModelView(vmodel, owner, known.active, target, False, "", tried)
            return self.names[vmodel]
        self.names[vmodel] = VModelView(vmodel, owner, target, target, False, "")
        self._journal.record(Did.MOVED, target, f'vmodel "{vmodel}" points here now')
        return self.names[vmodel]

    async def delete_vmodel(self, vmodel: str, *, owner: str = "") -> None:
        known = self.names.get(vmodel)
        if known and owner in ("", known.owner):
            del self.names[vmodel]

    def vmodel(self, vmodel: str, *, owner: str = "") -> VModelView:
        known = self.names.get(vmodel)
        if known is None or (owner and known.owner != owner):
            raise ModelNotFound(f'There is no vmodel "{vmodel}".', model=vmodel)
        return known

    def vmodels(self, *, prefix: str = "", after: str = "", limit: int = 100) -> Sequence[VModelView]:
        matches = [view for id, view in sorted(self.names.items()) if id.startswith(prefix) and id > after]
        return matches[:limit]

    def instance(self) -> InstanceView:
        states = [view.state for view in self.registered.values()]
        ledger = LedgerView(1 << 30, states.count(State.LOADED) * self.size_bytes, 0, 0, 0)
        return InstanceView(
            id="fake",
            version="0",
            started_wall_s=self.clock.wall_s(),
            ready=self.ready,
            draining=self.draining,
            cordoned="fake" in self.cordoned,
            ledger=ledger,
            models_registered=len(states),
            vmodels_registered=len(self.names),
            models_loaded=states.count(State.LOADED),
            models_failed=states.count(State.FAILED),
            loads_queued=0,
            loads_running=0,
            loads_total=self.loads_total,
            load_failures_total=0,
            evictions_total=0,
            faults_total=0,
            refusals_total=0,
            thrashing="",
            eviction_policy="rate-cost",
            runtimes=[
                RuntimeView("fake", self.served, (), running=True, reason="", ledger=ledger, memory=())
            ],
        )

    def memory(self) -> Sequence[tuple[str, int, int, int]]:
        return (("worker 0", 60 << 20, 45 << 20, self.instance().ledger.loaded_bytes),)

    def members(self) -> Sequence[MemberView]:
        views = [member_view("fake", here=True, copies=self.instance().models_loaded), *self.others]
        return [
            replace(view, cordoned=view.id in self.cordoned) for view in sorted(views, key=lambda v: v.id)
        ]

    async def order(self, instance: str, order: Order) -> None:
        self._check_instance(instance)
        match order:
            case Order.CORDON:
                self.cordoned.add(instance)
            case Order.UNCORDON:
                self.cordoned.discard(instance)
            case Order.DRAIN:
                self.draining = self.draining or instance == "fake"

    async def story(self, names: Sequence[str]) -> Story:
        own = [
            Remembered(entry.sequence, entry.wall_s, str(entry.did), entry.model, entry.reason, entry.numbers)
            for entry in self._journal.about(*names)
        ]
        told = [Happened("fake", entry) for entry in own]
        mute = []
        for other in self.others:
            if other.id in self.remembered:
                told += [
                    Happened(other.id, entry) for entry in self.remembered[other.id] if entry.model in names
                ]
            else:
                mute.append(Mute(other.id, f"The instance {other.id} does not answer."))
        answered = ["fake", *(other.id for other in self.others if other.id in self.remembered)]
        return Story(sorted(told, key=lambda happened: happened.entry.wall_s), sorted(answered), mute, False)

    async def census(self) -> MeshCount | None:
        if not self.tells_of_mesh:
            return None
        view = self.instance()
        return MeshCount(
            view.models_registered,
            view.models_loaded,
            view.models_failed,
            view.vmodels_registered,
            view.models_loaded,
        )


def member_view(id: str, *, here: bool = False, copies: int = 0) -> MemberView:
    """An instance that is well."""
    return MemberView(
        id=id, here=here, address=f"{id}:8080", zone="z1", host=f"host-{id}", labels=("cpu",), version="0",
        revision="r1", started_wall_s=1_700_000_000.0, capacity_bytes=1 << 30, free_bytes=1 << 29, price=0.0,
        requests_per_s=2.5, busyness=0.25, load_queue_s=0.0, copies=copies, loads_running=1, loads_queued=2, loads_total=3,
        evictions_total=4, draining=False, cordoned=False, suspected=False, told=True, trouble="",
    )  # fmt: skip
