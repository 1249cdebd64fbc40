"""Vmodels as their callers see them: stable names that point at a model, set, deleted and looked at.

`vmodel_rules` says what each call means, `transitions` moves those whose target is not active yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from modelmesh.clock import Clock
from modelmesh.errors import LoadTimeout, ModelMeshError, ModelNotFound
from modelmesh.journal import Did, Journal
from modelmesh.mesh.naming.canaries import Canaries
from modelmesh.mesh.naming.draft import Draft
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.naming.transitions import LOAD_S, Loader, Transitions
from modelmesh.mesh.naming.vmodel_rules import Outcome, Setting, delete_in, set_in
from modelmesh.mesh.views import CanaryView, SideView, VModelView
from modelmesh.policy.canary import Seen
from modelmesh.registry.mirror import ChangedIds, Mirror
from modelmesh.registry.records import VModelRecord

TOLD_ONE_BY_ONE: Final = 32
"""Vmodels of one transaction that get a journal entry each; the journal has better uses for its room than a first start."""
KEYS_EACH: Final = 4
"""The most keys that one setting or deletion touches: the vmodel, its active and target model, and the new target."""
SYNC_S: Final = 240.0
"""The most a call with `sync` waits for a transition (as the predecessor)."""

log = logging.getLogger(__name__)


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
        read_usage: Callable[[], None] = lambda: None,
        follow_route: Callable[[str, bool], None] = lambda model, wanted: None,
        measure: Callable[[str], None] = lambda event: None,
    ) -> None:
        """`drives` says whether this instance moves a vmodel, as its keeper, or leaves that to another; the others are as for
        `Canaries`."""
        self._registrar = registrar
        self._per_txn = max(1, registrar.txn_keys_max // KEYS_EACH)
        self._mirror = registrar.mirror
        self._loader = loader
        self._clock = clock
        self._journal = journal
        self._default_owner = default_owner
        self.transitions = Transitions(registrar, loader, clock, journal, drives)
        self.canaries = Canaries(
            registrar, loader, clock, journal, drives,
            read_usage=read_usage, follow_route=follow_route, measure=measure,
        )  # fmt: skip
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._loads: set[asyncio.Task[None]] = set()

    @property
    def mirror(self) -> Mirror:
        return self._mirror

    def on_change(self, listener: Callable[[ChangedIds], None]) -> None:
        """See `Registrar.on_change`."""
        self._registrar.on_change(listener)

    def start(self) -> None:
        """Follow the records, and take up the transitions that were under way."""
        self._registrar.on_change(self._changed)
        self.transitions.start()
        self.canaries.start()

    async def stop(self) -> None:
        """Stop all transitions where they are; the next start takes them up. Idempotent."""
        await self.transitions.stop()
        await self.canaries.stop()
        for task in self._loads:
            task.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)

    # Calls

    async def set(self, setting: Setting, *, sync: bool = False) -> VModelView:
        """Point a vmodel at a model. With `sync` return when the transition ended, whichever way; the view says which.
        Raises InvalidInput, ModelNotFound, AlreadyExists, FailedPrecondition, StoreUnavailable; LoadTimeout when `sync`
        took too long."""
        before = self._mirror.vmodel(setting.vmodel)
        had_copies = before is not None and self._loader.copies(before.active) > 0
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
        return VModelView(
            id=vmodel,
            owner=record.owner,
            active=record.active,
            target=record.target,
            target_failed=failed,
            reason=record.reason if failed else "",
            canary=None if record.settled else self._canary(vmodel, record),
        )

    def _canary(self, vmodel: str, record: VModelRecord) -> CanaryView | None:
        canary, trial = record.canary, self.canaries.trial(vmodel)
        if canary is None:
            return None
        active, target = (None, None) if trial is None else map(_side, trial.seen())
        return CanaryView(
            share=canary.share,
            for_s=canary.for_ms / 1000,
            requests=canary.requests,
            slower_max=canary.slower_max,
            since_wall_s=canary.since_ms / 1000,
            active=active,
            target=target,
            outlook="" if trial is None else trial.judge(self._clock.wall_s()).reason,
        )

    def _set_in(self, setting: Setting, draft: Draft) -> Outcome:
        now_ms = int(self._clock.wall_s() * 1000)
        return set_in(draft, setting, self._loader.copies, now_ms, self._default_owner)

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
            when = "once that is loaded" if setting.canary is None else "once that was tried out"
            self._journal.record(Did.LOADING, vmodel, f"It will point at {target} {when}.")

    def _changed(self, changed: ChangedIds) -> None:
        self.transitions.changed(changed)
        self.canaries.follow(changed)
        for vmodel in changed.vmodels:
            for waiting in self._waiting.pop(vmodel, ()):
                if not waiting.done():
                    waiting.set_result(None)

    async def _transition_ended(self, vmodel: str, target: str) -> None:
        """Return when the vmodel reached `target` or tries it out, failed to, or has other plans."""
        try:
            async with asyncio.timeout(SYNC_S):
                while (
                    (record := self._mirror.vmodel(vmodel)) is not None
                    and not record.settled
                    and not record.failed
                    and not record.on_trial
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


def _side(seen: Seen) -> SideView:
    return SideView(seen.requests, seen.errors, seen.mean_s)
