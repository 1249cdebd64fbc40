"""What the faces ask of models and vmodels (`mesh.control.ControlPlane`), and vmodels and folders of models
(`transitions.Loader`), answered from the parts of the mesh."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import DataPlane, Name, NameKind
from modelmesh.errors import (
    LoadFailed,
    LoadTimeout,
    ModelMeshError,
    ModelNotFound,
    ModelTooLarge,
    NoCapacity,
    RuntimeUnavailable,
)
from modelmesh.journal import Journal
from modelmesh.mesh.cache.asks import ASKED, TIMEOUT_S, Asks
from modelmesh.mesh.cache.copies import Copies, Purpose
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.control import Page, Query, Registration
from modelmesh.mesh.keeping.filling import Filling
from modelmesh.mesh.names import Names
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.naming.vmodel_rules import Setting
from modelmesh.mesh.naming.vmodels import VModels
from modelmesh.mesh.peering.bringing import bring
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.peering.overview import Overview
from modelmesh.mesh.peering.reports import Reports
from modelmesh.mesh.recollection import Story
from modelmesh.mesh.views import MemberView, MeshCount, ModelView, State, VModelView
from modelmesh.peers.protocol import Order
from modelmesh.policy.urgency import Why
from modelmesh.registry.keep import KeepChange
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import Canary

log = logging.getLogger(__name__)

HELD_WHEN_USED_MS = 3_600_000
"""A model is held until its first use when whoever has it loaded says that it was used this recently."""


class Desk(ABC):
    """The half of the mesh that answers; the other half acts, builds the parts named here, and is its only subclass."""

    _asks: Asks
    _clock: Clock
    _failures: Failures
    _copies: Copies
    _dataplane: DataPlane
    _filling: Filling
    _journal: Journal
    _mirror: Mirror
    _names: Names
    _others: Others | None
    _registrar: Registrar
    _reports: Reports
    overview: Overview
    """What is shown of the whole mesh."""
    vmodel_calls: VModels
    """Sets and deletes vmodels; the folder asks it too."""

    @abstractmethod
    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start work that the mesh owns."""

    # --- ControlPlane: models -------------------------------------------------------------------------------

    @property
    def journal(self) -> Journal:
        return self._journal

    def resolve(self, name: str, version: str = "") -> str:
        """The concrete model of what a user typed: a vmodel, then a model. Raises ModelNotFound."""
        asked = Name(NameKind.VMODEL_FIRST, name, version)
        model = self._names.resolve(asked)
        if model is None:
            raise self._names.not_found(asked)
        return model

    async def register(
        self, registration: Registration, *, load_now: bool = False, sync: bool = False
    ) -> ModelView:
        await self._registrar.register(registration)
        try:
            if load_now:
                await self._have_loaded(registration.id, True, sync)
        except (LoadFailed, LoadTimeout, NoCapacity, RuntimeUnavailable) as error:
            log.info("Model %s is registered but not loaded: %s", registration.id, error)
        return self._reports.model(registration.id)

    async def register_many(self, registrations: Sequence[Registration]) -> Sequence[ModelMeshError | None]:
        return await self._registrar.register_many(registrations)

    async def keep(self, name: str, change: KeepChange) -> ModelView:
        model = self.resolve(name)
        await self._registrar.keep(model, change)
        return self._reports.model(model)

    async def unregister(self, model: str) -> None:
        await self._registrar.unregister(model)

    async def status(self, model: str) -> ModelView:
        await self._know(model)
        return self._reports.model(model)

    async def ensure(self, model: str, *, last_used_ms: int = 0, sync: bool = False) -> ModelView:
        await self._know(model)
        now_ms = round(self._clock.wall_s() * 1000)
        used_ms = min(last_used_ms, now_ms) or now_ms
        self._registrar.used(model, used_ms)
        await self._have_loaded(model, now_ms - used_ms <= HELD_WHEN_USED_MS, sync)
        return self._reports.model(model)

    async def _have_loaded(self, model: str, hold: bool, sync: bool) -> None:
        """Start its load, which then belongs to no caller; with `sync` wait for it. Nothing while a failure stands."""
        if not self._is_tried(model):
            return
        if self._is_for_others(model):
            load = self._spawn(self._load_quietly(model, hold), f"have {model} loaded")
            if not sync:
                return
            await asyncio.wait({load})
        else:
            self._asks.begin(model, hold)
        if sync:
            await self._load(model, ASKED, hold, None)

    async def _load_quietly(self, model: str, hold: bool) -> None:
        """What keeps it from being loaded is told by its view."""
        try:
            await self._load(model, ASKED, hold, None)
        except ModelMeshError as error:
            log.info("Model %s is not loaded: %s", model, error)

    def _is_for_others(self, model: str) -> bool:
        """Whether it has no copy here that stays, so that its keeper says where it is loaded."""
        copy = self._copies.get(model)
        gone = copy is None or copy.state is State.UNLOADING or copy.retirement is not None
        return self._others is not None and len(self._others.fleet) > 0 and gone

    async def _load(
        self, model: str, why: str, hold: bool, timeout_s: float | None, need: Why = Why.ASKED
    ) -> None:
        """Return when it is loaded: here, or in any instance where there are several."""
        if self._others is not None and self._is_for_others(model):
            if self._mirror.model(model) is None:
                raise ModelNotFound.named(model)
            limit_s = TIMEOUT_S if timeout_s is None else timeout_s
            await self._others.have_loaded(model, why, limit_s, hold, need)
        else:
            await self._asks.load(model, why, hold, timeout_s, need=need)

    async def _know(self, model: str) -> None:
        """Learn what the store knows before calling a model unknown."""
        if self._mirror.model(model) is None:
            await self._registrar.wait_current()

    async def load(self, name: str, *, timeout_s: float | None = None) -> ModelView:
        model = self.resolve(name)
        await self._load(model, ASKED, True, timeout_s)
        return self._reports.model(model)

    async def unload(self, name: str, *, timeout_s: float | None = None) -> ModelView:
        model = self.resolve(name)
        self._filling.leave(model)
        if self._others is not None:
            await self._others.unload_elsewhere(model, ASKED)
        await self._asks.unload(model, timeout_s)
        return self._reports.model(model)

    def model(self, name: str) -> ModelView:
        return self._reports.model(self.resolve(name))

    async def models(self, query: Query) -> Page:
        return await self.overview.listing.page(query)

    def servable(self, name: str, version: str = "") -> bool:
        return self._is_tried(self.resolve(name, version))

    def _is_tried(self, model: str) -> bool:
        """Whether it is loaded, or would be: no failure stands, or other instances are tried first."""
        if self._reports.state(model) is not State.FAILED:
            return True
        return self._others is not None and self._others.fails_here(model)

    # --- ControlPlane: vmodels ------------------------------------------------------------------------------

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
        setting = Setting(
            vmodel,
            target,
            model,
            auto_delete_target,
            load_now,
            force,
            expected_target,
            owner,
            update_only,
            canary,
        )
        return await self.vmodel_calls.set(setting, sync=sync)

    async def delete_vmodel(self, vmodel: str, *, owner: str = "") -> None:
        await self.vmodel_calls.delete(vmodel, owner=owner)

    def vmodel(self, vmodel: str, *, owner: str = "") -> VModelView:
        return self.vmodel_calls.view(vmodel, owner=owner)

    def vmodels(self, *, prefix: str = "", after: str = "", limit: int = 100) -> Sequence[VModelView]:
        return self.vmodel_calls.views(prefix=prefix, after=after, limit=limit)

    def failures_stand(self, permanent_s: float) -> None:
        """How long a bad artefact is not tried again, from the next failure on."""
        self._failures.permanent_s = permanent_s

    # --- transitions.Loader: what vmodels and folders ask ---------------------------------------------------

    async def ensure_loaded(
        self, model: str, *, why: str, hold: bool = False, timeout_s: float | None = None
    ) -> None:
        """Return when this concrete model is loaded, here or in any instance; with `hold` it then stays until its first use. A
        standing failure does not keep it from being tried. Raises ModelNotFound, LoadFailed, LoadTimeout, NoCapacity,
        RuntimeUnavailable."""
        await self._load(model, why, hold, timeout_s)

    async def bring(self, model: str, copies: int, *, beside: str, why: str) -> None:
        """See `transitions.Loader`."""
        try:
            if self._others is not None and len(self._others.fleet):
                await bring(self._others, self._clock, model, copies, beside=beside, why=why)
            else:
                await self._asks.load(model, why, False, None)
        except ModelTooLarge:
            raise
        except NoCapacity:  # not beside it, then: as for requests that wait, its copies give way
            await self._load(model, why, False, None, Why.URGENT)

    def hold(self, model: str, why: str) -> None:
        """Keep its copy here from being evicted, also one yet to be loaded, until released. Idempotent."""
        self._copies.hold(model, why)

    def release(self, model: str, why: str) -> None:
        """End a hold. No error when there is none."""
        self._asks.release(model, why)

    def copies(self, model: str) -> int:
        """In how many instances it is loaded and can serve; a copy here that only makes room can be had back."""
        copy = self._copies.get(model)
        here = (
            copy is not None
            and copy.state is State.LOADED
            and (copy.retirement is None or copy.retirement.purpose is Purpose.ROOM)
        )
        return here + (0 if self._others is None else self._others.copies(model))

    def failure(self, model: str) -> str:
        """Why it cannot be loaded, while a permanent failure stands; else empty."""
        standing = self._failures.standing(model)
        return str(standing.error) if standing is not None and standing.permanent else ""

    def redirect(self, vmodel: str, model: str) -> None:
        """Until its record changes, requests for a vmodel are for this model, also those that wait: the one they are for now
        cannot be loaded. The active one itself ends this."""
        before = self._names.resolve(Name(NameKind.VMODEL, vmodel))
        self._names.redirect(vmodel, model)
        copy = None if before is None else self._copies.get(before)
        if copy is not None and copy.want is not None:
            rows = {row.model: row.waiting for row in self._dataplane.take_waiting()}
            copy.want.waiting = rows.get(copy.model, 0)

    # --- ControlPlane: the mesh -----------------------------------------------------------------------------

    def members(self) -> Sequence[MemberView]:
        return self.overview.roster.members()

    async def order(self, instance: str, order: Order) -> None:
        await self.overview.orders.give(instance, order)

    async def story(self, names: Sequence[str]) -> Story:
        return await self.overview.recollection.everywhere(names)

    async def census(self) -> MeshCount | None:
        return await self.overview.census()
