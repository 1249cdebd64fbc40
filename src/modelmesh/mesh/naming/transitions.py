"""Moving vmodels to their targets, by the instance that keeps them, without a cold or failed request.

A transition brings the target to as many instances as serve the active model, switches, and thereby lets go of the former
(`targets` holds both meanwhile, everywhere). A target that cannot be loaded leaves the active model serving; the reason is in
the record for all to tell, and it is tried again later. Nothing of a transition but its record outlives its keeper, and the
next keeper begins from that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Final, Protocol

from modelmesh.clock import Clock
from modelmesh.errors import (
    LoadFailed,
    LoadTimeout,
    ModelMeshError,
    RuntimeUnavailable,
    StoreUnavailable,
)
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.failures import nature
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.naming.vmodel_rules import begin_trial_in, fail_in, must_load, switch_in
from modelmesh.policy.backoff import Nature
from modelmesh.registry.mirror import ChangedIds
from modelmesh.registry.records import Canary, VModelRecord

RUNNING: Final = 8
"""Transitions that load at once; more wait their turn, so that a changed disk does not become a thousand loads."""
LOAD_S: Final = 900.0
"""The most a transition waits for its target in one go."""
RETRY_S: Final = (2.0, 15.0, 60.0, 300.0, 900.0)
"""Waiting between tries of a target that failed without saying when to come back."""
RETRY_PERMANENT_S: Final = (300.0, 900.0)
"""The same for a target whose artefact is bad: usually it is replaced, and then is another target."""

log = logging.getLogger(__name__)


class Loader(Protocol):
    """What vmodels and folders ask of the mesh. Models are concrete ids."""

    async def ensure_loaded(self, model: str, *, why: str) -> None:
        """Return once a copy is loaded. Raises LoadFailed, LoadTimeout, NoCapacity, ModelNotFound, RuntimeUnavailable."""

    async def bring(self, model: str, copies: int, *, beside: str, why: str) -> None:
        """Have it loaded in `copies` instances, or in fewer where no more have room for it beside their copy of the model
        `beside`, or where the others take much longer than the first. Where none has, `beside` gives way. Return once that is
        so, with one at least; raises as `ensure_loaded`."""

    def copies(self, model: str) -> int:
        """In how many instances it is loaded and can serve."""

    def failure(self, model: str) -> str:
        """Why it cannot be loaded, while a permanent failure stands; else empty."""


class Transitions:
    """`drives` says whether this instance moves a vmodel, as its keeper, or leaves that to another. One owner, the event loop."""

    def __init__(
        self,
        registrar: Registrar,
        loader: Loader,
        clock: Clock,
        journal: Journal,
        drives: Callable[[str], bool],
    ) -> None:
        self._registrar = registrar
        self._mirror = registrar.mirror
        self._loader = loader
        self._clock = clock
        self._journal = journal
        self._drives = drives
        self._queue: dict[str, None] = {}
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        """vmodel -> the target it moves to, and the task that does it."""
        self._retries: dict[str, tuple[str, asyncio.TimerHandle]] = {}
        self._failures: dict[str, tuple[str, int]] = {}
        """vmodel -> the target that failed, and how often."""
        self._started = False

    def start(self) -> None:
        """Take up the transitions that were under way. None while the registry is read-only: others see to them."""
        self._started = True
        self.look_again()

    async def stop(self) -> None:
        """Stop all transitions where they are; the next start takes them up. Idempotent."""
        self._started = False
        for _, timer in self._retries.values():
            timer.cancel()
        self._queue.clear()
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def moving(self, vmodel: str) -> bool:
        """Whether this instance moves it now."""
        return vmodel in self._running

    def changed(self, changed: ChangedIds) -> None:
        """Records of vmodels are different now."""
        for vmodel in changed.vmodels:
            if vmodel in self._mirror.unsettled or vmodel in self._running or vmodel in self._failures:
                self._forgive(vmodel)
                self._poke(vmodel)

    def look_again(self) -> None:
        """Instances came or went: some vmodels may be this one's to move now."""
        for vmodel in sorted(self._mirror.unsettled):
            self._poke(vmodel)

    def _forgive(self, vmodel: str) -> None:
        """A target that failed here and is not said to have failed any more is asked for anew: it does not wait."""
        record = self._mirror.vmodel(vmodel)
        if vmodel in self._failures and vmodel not in self._running and record and not record.failed:
            del self._failures[vmodel]
            if vmodel in self._retries:
                self._retries.pop(vmodel)[1].cancel()

    def _poke(self, vmodel: str) -> None:
        """See to a vmodel whose record changed, or whose time to try again has come."""
        if not self._started or self._registrar.read_only:
            return
        record = self._mirror.vmodel(vmodel)
        target = "" if record is None or not _moves(record) else record.target
        if vmodel in self._running:
            if self._running[vmodel][0] != target:
                self._running[vmodel][1].cancel()
            return
        if vmodel in self._retries:
            if self._retries[vmodel][0] == target:
                return
            self._retries.pop(vmodel)[1].cancel()
        if self._failures.get(vmodel, (target,))[0] != target:
            del self._failures[vmodel]
        if target and self._drives(vmodel):
            self._queue[vmodel] = None
            self._fill()

    def _fill(self) -> None:
        while self._queue and len(self._running) < RUNNING:
            vmodel = next(iter(self._queue))
            del self._queue[vmodel]
            record = self._mirror.vmodel(vmodel)
            if record is not None and _moves(record):
                task = asyncio.create_task(self._move(vmodel, record), name=f"transition-{vmodel}")
                self._running[vmodel] = (record.target, task)
                task.add_done_callback(partial(self._moved, vmodel))

    def _moved(self, vmodel: str, task: asyncio.Task[None]) -> None:
        del self._running[vmodel]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("The transition of %s failed unexpectedly.", vmodel, exc_info=error)
            record = self._mirror.vmodel(vmodel)
            if record is not None and self._started:
                self._retry(vmodel, record.target, RETRY_S[-1])
        self._poke(vmodel)
        self._fill()

    # --- one transition -------------------------------------------------------------------------------------

    async def _move(self, vmodel: str, record: VModelRecord) -> None:
        """Bring a vmodel to its target."""
        target = record.target
        try:
            if must_load(vmodel, record, self._loader.copies):
                goal = max(self._loader.copies(record.active), 1)
                if record.canary is not None:
                    await self._bring(vmodel, record, copies_for(record.canary.share, goal))
                    await self._begin_trial(vmodel, target, record.canary)
                else:
                    await self._bring(vmodel, record, goal)
                    await self._switch(vmodel, target, self._how(target, goal))
            else:
                await self._switch(
                    vmodel, target, f"{record.active} was not loaded, so nothing had to be loaded first."
                )
        except StoreUnavailable as error:
            log.warning("The vmodel %s waits for the store to move to %s: %s", vmodel, target, error)
            self._retry(vmodel, target, RETRY_S[0])
        except RuntimeUnavailable as error:
            log.info("The vmodel %s waits for the runtime to load %s: %s", vmodel, target, error)
            self._retry(vmodel, target, RETRY_S[0])
        except ModelMeshError as error:
            if self._registrar.read_only:
                log.info("The vmodel %s is left to others while the registry is read-only: %s", vmodel, error)
            else:
                await self._fail(vmodel, target, error)

    async def _bring(self, vmodel: str, record: VModelRecord, copies: int) -> None:
        target = record.target
        try:
            async with asyncio.timeout(LOAD_S):
                await self._loader.bring(
                    target, copies, beside=record.active, why=f"the vmodel {vmodel} is to point at it"
                )
        except TimeoutError:
            raise LoadTimeout(f"Model {target} was not loaded within {LOAD_S:g} s.", model=target) from None

    def _how(self, target: str, goal: int) -> str:
        copies = self._loader.copies(target)
        if goal <= 1:
            return "It is loaded."
        if copies >= goal:
            return f"{copies} copies of it are loaded, as many as served before."
        return f"{copies} of the {goal} copies that served before are loaded; for more there was no room, or no time."

    async def _switch(self, vmodel: str, target: str, how: str) -> None:
        if await self._registrar.transact(lambda draft: switch_in(draft, vmodel, target)):
            self._failures.pop(vmodel, None)
            self._journal.record(Did.SWITCHED, vmodel, f"It points at {target} from now on. {how}")
        else:  # another instance was faster, and the mirror behind: it would be tried again at once, and again
            await self._registrar.wait_current()

    async def _begin_trial(self, vmodel: str, target: str, canary: Canary) -> None:
        now_ms = round(self._clock.wall_s() * 1000)
        if await self._registrar.transact(lambda draft: begin_trial_in(draft, vmodel, target, now_ms)):
            self._failures.pop(vmodel, None)
            self._journal.record(
                Did.SWITCHED,
                vmodel,
                f"{100 * canary.share:.3g} % of its requests go to {target} from now on, to try it out.",
            )
        else:
            await self._registrar.wait_current()

    async def _fail(self, vmodel: str, target: str, error: ModelMeshError) -> None:
        known, count = self._failures.get(vmodel, (target, 0))
        count = count + 1 if known == target else 1
        self._failures[vmodel] = (target, count)
        bad = isinstance(error, LoadFailed) and nature(error) is Nature.BAD
        waits_s = RETRY_PERMANENT_S if bad else RETRY_S
        wait_s = error.retry_after_s or waits_s[min(count, len(waits_s)) - 1]
        self._retry(vmodel, target, wait_s)
        record = self._mirror.vmodel(vmodel)
        active = record.active if record is not None else ""
        self._journal.record(
            Did.LOAD_FAILED,
            vmodel,
            f"{active} goes on serving, because the target {target} could not be loaded: {error} "
            f"It is tried again in {wait_s:.0f} s.",
            retry_in_s=wait_s,
            count=count,
        )
        try:
            await self._registrar.transact(lambda draft: fail_in(draft, vmodel, target, str(error)))
        except StoreUnavailable as unavailable:
            log.warning("That the target of %s failed could not be stored: %s", vmodel, unavailable)

    def _retry(self, vmodel: str, target: str, wait_s: float) -> None:
        if vmodel in self._retries:
            self._retries.pop(vmodel)[1].cancel()
        timer = asyncio.get_running_loop().call_later(max(wait_s, 0.1), self._again, vmodel)
        self._retries[vmodel] = (target, timer)

    def _again(self, vmodel: str) -> None:
        self._retries.pop(vmodel, None)
        self._poke(vmodel)


def copies_for(share: float, copies: int) -> int:
    """How many copies serve a share of the requests where the whole has so many."""
    return max(ceil(share * copies), 1)


def _moves(record: VModelRecord) -> bool:
    """Whether there is something to do for it here: it is on its way, and no canary is on trial or failed it."""
    return not record.settled and not record.on_trial and not record.rolled_back
