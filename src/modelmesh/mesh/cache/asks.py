"""Calls that want a model loaded or unloaded and wait for it: the admin API, the CLI, vmodels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from modelmesh.errors import LoadTimeout, ModelMeshError, ModelNotFound, NoCapacity
from modelmesh.mesh.cache.copies import Copies, Copy, Purpose
from modelmesh.mesh.cache.holds import UNTIL_USED
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.views import State
from modelmesh.policy.urgency import Why
from modelmesh.registry.mirror import Mirror

TIMEOUT_S: Final = 300.0
"""How long a call waits when it gives no limit."""
ASKED: Final = "it was asked for"

log = logging.getLogger(__name__)


class Asks:
    """`settle` is called after each change. After `stop` every call fails."""

    def __init__(
        self,
        mirror: Mirror,
        copies: Copies,
        sites: Sites,
        *,
        settle: Callable[[], None],
    ) -> None:
        self._mirror = mirror
        self._copies = copies
        self._sites = sites
        self._settle = settle
        self._waiting_gone: dict[str, list[asyncio.Future[None]]] = {}
        self._stopped: ModelMeshError | None = None

    # --- loading --------------------------------------------------------------------------------------------

    async def load(
        self,
        model: str,
        why: str,
        hold: bool,
        timeout_s: float | None,
        *,
        need: Why = Why.ASKED,
        suspicion: bool = False,
    ) -> None:
        """See `Mesh.ensure_loaded`. `need` says how pressing it is, `suspicion` that it is believed to be loaded in an instance
        that does not answer."""
        waiter = self._want(model, why, hold, need, suspicion)
        if waiter is None:
            return
        limit_s = TIMEOUT_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await waiter
        except TimeoutError:
            raise LoadTimeout(f"Model {model} was not loaded within {limit_s:g} s.", model=model) from None
        finally:
            self._withdraw(model, waiter)

    def begin(self, model: str, hold: bool = True) -> None:
        """Start a load nobody waits for; with `hold` keep it until its first use. Raises NoCapacity, RuntimeUnavailable."""
        waiter = self._want(model, ASKED, hold)
        copy = self._copies.get(model)
        if waiter is not None and copy is not None and copy.want is not None:
            copy.want.asked = True
            self._withdraw(model, waiter)

    def _want(
        self, model: str, why: str, hold: bool, need: Why = Why.ASKED, suspicion: bool = False
    ) -> asyncio.Future[None] | None:
        """Have a model loaded. None when it is; else what tells when, which must be awaited or withdrawn."""
        record = self._mirror.model(model)
        if record is None:
            raise ModelNotFound.named(model)
        if self._stopped is not None:
            raise self._stopped
        if hold:
            self._copies.hold(model, UNTIL_USED)
        if self._have(model, why):
            self._settle()
            return None
        known = self._copies.get(model)
        try:
            loads = self._sites.loads_of(model, record, known)
            want = loads.want(model, record)
        except ModelMeshError:
            self._copies.unhold(model, UNTIL_USED)
            raise
        if want is None:
            self._copies.unhold(model, UNTIL_USED)
            raise NoCapacity(
                f"Too many models wait to be loaded; model {model} is not accepted.",
                model=model,
                retry_after_s=1.0,
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        want.waiters[waiter] = need
        if need < Why.SCALE:
            want.suspicion = suspicion and (want.suspicion or known is None)
        loads.changed(model)
        self._settle()
        return waiter

    def _have(self, model: str, why: str) -> bool:
        """Whether it is loaded, if need be by calling off its eviction. A copy whose servers are all gone, though nothing was
        said of it, is none: it is unloaded, to be sure."""
        copy = self._copies.get(model)
        if copy is None or copy.state is not State.LOADED:
            return False
        if self._copies.deserted(copy):
            self._sites.holding(copy).evictions.vanished(copy)
            return False
        if copy.retirement is not None and copy.retirement.purpose is Purpose.ROOM:
            self._sites.holding(copy).evictions.revive(copy, why)
        return copy.retirement is None

    def _withdraw(self, model: str, waiter: asyncio.Future[None]) -> None:
        """A call stopped waiting. If it was the last to want the load, the queue forgets it."""
        copy = self._copies.get(model)
        if copy is None or copy.want is None or waiter not in copy.want.waiters:
            return
        del copy.want.waiters[waiter]
        if not copy.want.waiters and not copy.want.asked:
            self._copies.unhold(model, UNTIL_USED)
        self._sites.holding(copy).loads.unwanted(copy)
        self._settle()

    def release(self, model: str, why: str) -> None:
        """End a hold. No error when there is none."""
        self._copies.unhold(model, why)
        copy = self._copies.get(model)
        if copy is not None:
            self._sites.holding(copy).loads.unwanted(copy)
        self._settle()

    # --- unloading ------------------------------------------------------------------------------------------

    async def unload(self, model: str, timeout_s: float | None) -> None:
        """Return when it is unloaded, its requests done. Raises LoadTimeout; it goes on leaving then."""
        copy = self._copies.get(model)
        limit_s = TIMEOUT_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                if copy is not None and copy.state in (State.QUEUED, State.LOADING):
                    await self._load_ended(copy)
                copy = self._copies.get(model)
                if copy is not None and copy.state in (State.LOADED, State.UNLOADING):
                    await self._unload_and_wait(copy)
        except TimeoutError:
            raise LoadTimeout(
                f"Model {model} was not unloaded within {limit_s:g} s: its requests have not ended. It goes when they do.",
                model=model,
            ) from None

    async def _load_ended(self, copy: Copy) -> None:
        """Wait for a load under way, whatever comes of it; one only asked for is dropped."""
        self._copies.unhold(copy.model, UNTIL_USED)
        if copy.want is not None and not copy.want.waiters:
            copy.want.asked = False
        self._sites.holding(copy).loads.unwanted(copy)
        if self._copies.get(copy.model) is not copy or copy.want is None:
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        copy.want.waiters[ended] = Why.PREWARM
        try:
            await ended
        except ModelMeshError as error:
            log.info("Model %s need not be unloaded: %s", copy.model, error)

    async def _unload_and_wait(self, copy: Copy) -> None:
        self._copies.unhold(copy.model, UNTIL_USED)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_gone.setdefault(copy.model, []).append(gone)
        if copy.state is State.LOADED:
            self._sites.holding(copy).evictions.retire(copy, Purpose.ASKED, "it was asked for")
            self._settle()
        await gone

    def gone(self, model: str) -> None:
        """A copy is gone."""
        for waiter in self._waiting_gone.pop(model, ()):
            if not waiter.done():
                waiter.set_result(None)

    def stop(self, error: ModelMeshError) -> None:
        """Every call that waits fails with `error`, and every later one."""
        self._stopped = error
        for waiters in self._waiting_gone.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
        for site in self._sites:
            site.loads.stop(error)
