"""Vmodels: stable names that move from one model to another without a cold or failed request.

A transition loads the target and holds it, switches, and lets go of it a little later. A target that cannot be loaded leaves the
active model serving; the reason is told, and the target is tried again later. `vmodel_rules` says what each call means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol

from modelmesh.clock import Clock
from modelmesh.errors import (
    LoadFailed,
    LoadTimeout,
    ModelMeshError,
    ModelNotFound,
    RuntimeUnavailable,
    StoreUnavailable,
)
from modelmesh.journal import Did, Journal
from modelmesh.mesh.draft import Draft
from modelmesh.mesh.registrar import Registrar
from modelmesh.mesh.views import VModelView
from modelmesh.mesh.vmodel_rules import Outcome, Setting, delete_in, fail_in, must_load, set_in, switch_in
from modelmesh.registry.mirror import ChangedIds, Mirror
from modelmesh.registry.records import VModelRecord

HOLD: Final = "vmodel target"
RUNNING: Final = 8
"""Transitions that load at once; more wait their turn, so that a changed disk does not become a thousand loads."""
LOAD_S: Final = 900.0
"""The most a transition waits for its target in one go."""
TOLD_ONE_BY_ONE: Final = 32
"""Vmodels of one transaction that get a journal entry each; the journal has better uses for its room than a first start."""
KEYS_EACH: Final = 4
"""The most keys that one setting or deletion touches: the vmodel, its active and target model, and the new target."""
SYNC_S: Final = 240.0
"""The most a call with `sync` waits for a transition (as the predecessor)."""
RETRY_S: Final = (2.0, 15.0, 60.0, 300.0, 900.0)
"""Waiting between tries of a target that failed without saying when to come back."""
RETRY_PERMANENT_S: Final = (300.0, 900.0)
"""The same for a target whose artefact is bad: usually it is replaced, and then is another target."""
RESIDENCE_S_MAX: Final = 60.0

log = logging.getLogger(__name__)


class Loader(Protocol):
    """What vmodels and folders ask of the mesh. Models are concrete ids."""

    async def ensure_loaded(self, model: str, *, why: str) -> None:
        """Return once a copy is loaded. Raises LoadFailed, LoadTimeout, NoCapacity, ModelNotFound, RuntimeUnavailable."""

    def hold(self, model: str, why: str) -> None:
        """Keep its copy from being evicted, also one that is yet to be loaded, until released. Idempotent."""

    def release(self, model: str, why: str) -> None:
        """End a hold. No error when there is none."""

    def has_copies(self, model: str) -> bool:
        """Whether a copy is loaded and can serve."""

    def failure(self, model: str) -> str:
        """Why it cannot be loaded, while a permanent failure stands; else empty."""


class VModels:
    """One owner, the event loop. `start` after the registrar, `stop` before it."""

    def __init__(
        self,
        registrar: Registrar,
        loader: Loader,
        clock: Clock,
        journal: Journal,
        *,
        default_owner: str = "",
        drives: Callable[[str], bool] = lambda vmodel: True,
    ) -> None:
        """`drives` says whether this instance moves a vmodel, as its keeper, or leaves that to another."""
        self._registrar = registrar
        self._per_txn = max(1, registrar.txn_keys_max // KEYS_EACH)
        self._mirror = registrar.mirror
        self._loader = loader
        self._clock = clock
        self._journal = journal
        self._default_owner = default_owner
        self._drives = drives
        self._queue: dict[str, None] = {}
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        """vmodel -> the target it moves to, and the task that does it."""
        self._retries: dict[str, tuple[str, asyncio.TimerHandle]] = {}
        self._failures: dict[str, tuple[str, int, str]] = {}
        """vmodel -> the target that failed, how often, and why."""
        self._releases: dict[str, asyncio.TimerHandle] = {}
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._loads: set[asyncio.Task[None]] = set()
        self._started = False

    @property
    def mirror(self) -> Mirror:
        return self._mirror

    def on_change(self, listener: Callable[[ChangedIds], None]) -> None:
        """See `Registrar.on_change`."""
        self._registrar.on_change(listener)

    def start(self) -> None:
        """Take up the transitions that were under way. None while the registry is read-only: others see to them."""
        self._registrar.on_change(self._changed)
        self._started = True
        for vmodel in sorted(self._mirror.unsettled):
            self._poke(vmodel)

    async def stop(self) -> None:
        """Stop all transitions where they are; the next start takes them up. Idempotent."""
        self._started = False
        for _, timer in self._retries.values():
            timer.cancel()
        for timer in self._releases.values():
            timer.cancel()
        self._queue.clear()
        tasks = [*self._loads, *(task for _, task in self._running.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Calls

    async def set(self, setting: Setting, *, sync: bool = False) -> VModelView:
        """Point a vmodel at a model. With `sync` return when the transition ended, whichever way; the view says which.
        Raises InvalidInput, ModelNotFound, AlreadyExists, FailedPrecondition, StoreUnavailable; LoadTimeout when `sync`
        took too long."""
        before = self._mirror.vmodel(setting.vmodel)
        had_copies = before is not None and self._loader.has_copies(before.active)
        outcome = await self._registrar.transact(partial(self._set_in, setting))
        self._tell(setting, outcome)
        record = self._mirror.vmodel(setting.vmodel)
        if record is not None and not record.settled:
            if sync:
                await self._transition_ended(setting.vmodel, record.target)
        elif setting.load_now or (had_copies and outcome is Outcome.SWITCHED):
            load = self._spawn(
                self._load(setting.target, f"the vmodel {setting.vmodel} points at it"),
                f"load-{setting.target}",
            )
            if sync and setting.model is not None:
                await asyncio.wait({load})  # cancelled, it leaves the load running
        record = self._mirror.vmodel(setting.vmodel)
        if record is None:
            return VModelView(setting.vmodel, "", "", "", False, "It was deleted meanwhile.")
        return self._view(setting.vmodel, record)

    async def set_many(self, settings: Sequence[Setting]) -> list[ModelMeshError | None]:
        """Several settings in few transactions, each for itself: one answer per setting, None when it holds. Raises
        StoreUnavailable. Nothing is loaded that is not part of a transition."""

        def decide(chunk: Sequence[Setting], draft: Draft) -> list[Outcome | ModelMeshError]:
            answers: list[Outcome | ModelMeshError] = []
            for setting in chunk:
                try:
                    answers.append(self._set_in(setting, draft))
                except ModelMeshError as error:
                    answers.append(error)
            return answers

        answers: list[Outcome | ModelMeshError] = []
        for start in range(0, len(settings), self._per_txn):
            chunk = settings[start : start + self._per_txn]
            answers += await self._registrar.transact(partial(decide, chunk))
        n_created = answers.count(Outcome.CREATED)
        for setting, answer in zip(settings, answers, strict=True):
            if isinstance(answer, Outcome) and (
                answer is not Outcome.CREATED or n_created <= TOLD_ONE_BY_ONE
            ):
                self._tell(setting, answer)
        if n_created > TOLD_ONE_BY_ONE:
            self._journal.record(Did.REGISTERED, "", f"{n_created} vmodels were created.", vmodels=n_created)
        return [answer if isinstance(answer, ModelMeshError) else None for answer in answers]

    async def delete(self, vmodel: str, *, owner: str = "") -> None:
        """Forget a vmodel, and the models that only lived for it. Unknown ones and those of others are silent successes."""
        await self.delete_many([vmodel], owner=owner)

    async def delete_many(self, vmodels: Sequence[str], *, owner: str = "") -> None:
        """As `delete`, in few transactions."""

        def decide(chunk: Sequence[str], draft: Draft) -> list[str]:
            return [vmodel for vmodel in chunk if delete_in(draft, vmodel, owner)]

        deleted: list[str] = []
        for start in range(0, len(vmodels), self._per_txn):
            chunk = vmodels[start : start + self._per_txn]
            deleted += await self._registrar.transact(partial(decide, chunk))
        for vmodel in deleted[:TOLD_ONE_BY_ONE]:
            self._journal.record(Did.UNREGISTERED, vmodel, "The vmodel was deleted.")
        if (n_more := len(deleted) - TOLD_ONE_BY_ONE) > 0:
            self._journal.record(Did.UNREGISTERED, "", f"{n_more} more vmodels were deleted.", vmodels=n_more)

    def view(self, vmodel: str, *, owner: str = "") -> VModelView:
        """Raises ModelNotFound when there is none, or an owner is given and it is another's."""
        record = self._mirror.vmodel(vmodel)
        if record is None or (owner and record.owner != owner):
            raise ModelNotFound.named(vmodel, what="vmodel")
        return self._view(vmodel, record)

    def views(self, *, prefix: str = "", after: str = "", limit: int = 100) -> list[VModelView]:
        """A page of vmodels, ordered by id."""
        return [self._view(id, record) for id, record in self._mirror.page_vmodels(prefix, after, limit)]

    def _view(self, vmodel: str, record: VModelRecord) -> VModelView:
        failed = record.failed and not record.settled
        target, _, reason = self._failures.get(vmodel, ("", 0, ""))
        return VModelView(
            id=vmodel,
            owner=record.owner,
            active=record.active,
            target=record.target,
            target_failed=failed,
            reason=reason if failed and target == record.target else "",
        )

    def _set_in(self, setting: Setting, draft: Draft) -> Outcome:
        now_ms = int(self._clock.wall_s() * 1000)
        return set_in(draft, setting, self._loader.has_copies, now_ms, self._default_owner)

    def _tell(self, setting: Setting, outcome: Outcome) -> None:
        vmodel, target = setting.vmodel, setting.target
        if outcome is Outcome.CREATED:
            self._journal.record(Did.REGISTERED, vmodel, f"The vmodel was created and points at {target}.")
        elif outcome is Outcome.SWITCHED:
            self._journal.record(Did.SWITCHED, vmodel, f"It points at {target} from now on.")
        elif outcome is Outcome.KEPT:
            self._journal.record(
                Did.SWITCHED, vmodel, f"It stays with {target}; no other target is tried any more."
            )
        elif outcome is Outcome.BEGUN:
            self._journal.record(Did.LOADING, vmodel, f"It will point at {target} once that is loaded.")

    def moving(self, vmodel: str) -> bool:
        """Whether this instance moves it now."""
        return vmodel in self._running

    # Transitions

    def _changed(self, changed: ChangedIds) -> None:
        for vmodel in changed.vmodels:
            if vmodel in self._mirror.unsettled or vmodel in self._running or vmodel in self._failures:
                self._poke(vmodel)
            for waiting in self._waiting.pop(vmodel, ()):
                if not waiting.done():
                    waiting.set_result(None)

    def look_again(self) -> None:
        """Instances came or went: some vmodels may be this one's to move now."""
        for vmodel in sorted(self._mirror.unsettled):
            self._poke(vmodel)

    def _poke(self, vmodel: str) -> None:
        """See to a vmodel whose record changed, or whose time to try again has come."""
        if not self._started or self._registrar.read_only:
            return
        record = self._mirror.vmodel(vmodel)
        target = "" if record is None or record.settled else record.target
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
            if record is not None and not record.settled:
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

    async def _move(self, vmodel: str, record: VModelRecord) -> None:
        """Bring a vmodel to its target."""
        target = record.target
        try:
            if must_load(vmodel, record, self._loader.has_copies):
                await self._load_and_switch(vmodel, target)
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

    async def _load_and_switch(self, vmodel: str, target: str) -> None:
        began_s = self._clock.monotonic_s()
        self._hold(target)
        keep_s = 0.0
        try:
            await self._ensure_loaded(target, vmodel)
            if await self._switch(vmodel, target, "It is loaded."):
                keep_s = min(2.0 + 3 * (self._clock.monotonic_s() - began_s), RESIDENCE_S_MAX)
        finally:
            self._release_in(target, keep_s, vmodel)

    async def _ensure_loaded(self, target: str, vmodel: str) -> None:
        try:
            async with asyncio.timeout(LOAD_S):
                await self._loader.ensure_loaded(target, why=f"the vmodel {vmodel} is to point at it")
        except TimeoutError:
            raise LoadTimeout(f"Model {target} was not loaded within {LOAD_S:g} s.", model=target) from None

    async def _switch(self, vmodel: str, target: str, how: str) -> bool:
        switched = await self._registrar.transact(lambda draft: switch_in(draft, vmodel, target))
        if switched:
            self._failures.pop(vmodel, None)
            self._journal.record(Did.SWITCHED, vmodel, f"It points at {target} from now on. {how}")
        else:  # another instance was faster, and the mirror behind: it would be tried again at once, and again
            await self._registrar.wait_current()
        return switched

    async def _fail(self, vmodel: str, target: str, error: ModelMeshError) -> None:
        known, count, _ = self._failures.get(vmodel, (target, 0, ""))
        count = count + 1 if known == target else 1
        self._failures[vmodel] = (target, count, str(error))
        waits_s = RETRY_PERMANENT_S if isinstance(error, LoadFailed) and error.permanent else RETRY_S
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
            await self._registrar.transact(lambda draft: fail_in(draft, vmodel, target))
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

    async def _transition_ended(self, vmodel: str, target: str) -> None:
        """Return when the vmodel reached `target`, failed to, or has other plans."""
        try:
            async with asyncio.timeout(SYNC_S):
                while (
                    (record := self._mirror.vmodel(vmodel)) is not None
                    and not record.settled
                    and not record.failed
                    and record.target == target
                ):
                    waiting = asyncio.get_running_loop().create_future()
                    self._waiting.setdefault(vmodel, set()).add(waiting)
                    await waiting
        except TimeoutError:
            raise LoadTimeout(
                f"The vmodel {vmodel} did not reach its target {target} within {SYNC_S:g} s; the transition goes on.",
                model=vmodel,
            ) from None

    # Holding and loading

    def _hold(self, model: str) -> None:
        if model in self._releases:
            self._releases.pop(model).cancel()
        self._loader.hold(model, HOLD)

    def _release_in(self, model: str, wait_s: float, vmodel: str) -> None:
        """Let go of a target: at once, or when it had a little time to prove useful. Another transition may hold it too."""
        if any(target == model and other != vmodel for other, (target, _) in self._running.items()):
            return
        if wait_s <= 0:
            self._loader.release(model, HOLD)
            return
        if model in self._releases:
            self._releases.pop(model).cancel()
        self._releases[model] = asyncio.get_running_loop().call_later(wait_s, self._release, model)

    def _release(self, model: str) -> None:
        self._releases.pop(model, None)
        self._loader.release(model, HOLD)

    async def _load(self, model: str, why: str) -> None:
        """Load what a settled vmodel points at. A failed load is no error here: the model's own view tells it."""
        try:
            async with asyncio.timeout(LOAD_S):
                await self._loader.ensure_loaded(model, why=why)
        except (ModelMeshError, TimeoutError) as error:
            log.info("Model %s was not loaded though %s: %s", model, why, error or "it took too long")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)
        return task
