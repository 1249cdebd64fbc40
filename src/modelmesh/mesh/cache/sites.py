"""The runtimes of one instance: which of them a model belongs to. One that is down stops no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from modelmesh.errors import (
    Code,
    LoadFailed,
    ModelMeshError,
    ModelNotFound,
    RuntimeUnavailable,
)
from modelmesh.mesh.cache.copies import Copy
from modelmesh.mesh.cache.loads import Loads
from modelmesh.mesh.cache.site import Site
from modelmesh.mesh.views import LedgerView, State
from modelmesh.policy.runtimes import Constraint, choose
from modelmesh.policy.thrash import Thrashing
from modelmesh.registry.records import ModelRecord

START_PATIENCE_S: Final = 10.0
"""Once one runtime runs, the others are waited for no longer than this; they go on starting."""


class Sites:
    """In the configured order, at least one. `record_of` answers from the mirror."""

    def __init__(
        self,
        sites: Sequence[Site],
        constraints: Mapping[str, Constraint],
        record_of: Callable[[str], ModelRecord | None],
    ) -> None:
        self._sites = tuple(sites)
        self._offers = [site.offer for site in sites]
        self._constraints = constraints
        self._record_of = record_of
        self._of_budget = {id(site.budget): site for site in sites}

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when all runtimes run, or one does and the others had `START_PATIENCE_S`. Raises RuntimeUnavailable when none
        can be started, SettingsError when any has a wrong setting; then none is starting."""
        starts = [site.begin() for site in self._sites]
        patience_s: float | None = None
        pending = set(starts)
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    error = task.exception()
                    if error is not None and not isinstance(error, RuntimeUnavailable):
                        raise error
                if not done:
                    break
                patience_s = START_PATIENCE_S if any(site.running for site in self._sites) else None
            if not any(site.running for site in self._sites):
                await starts[0]
        except BaseException:
            await asyncio.gather(*(site.cancel() for site in self._sites))
            raise

    async def prepare(self, model_types: Collection[str]) -> None:
        """See `Runtime.prepare`: by those that run."""
        await asyncio.gather(*(site.runtime.prepare(model_types) for site in self._sites if site.running))

    # --- which ----------------------------------------------------------------------------------------------

    def holding(self, copy: Copy) -> Site:
        """The site of a copy."""
        return self._of_budget[id(copy.budget)]

    def serving(self, model: str, record: ModelRecord) -> Site:
        """The site that loads a model. Raises LoadFailed, FAILED_PRECONDITION, when no runtime may; RuntimeUnavailable when it is
        down."""
        chosen = choose(record.type, self._offers, self._constraints)
        if isinstance(chosen, str):
            raise LoadFailed(
                f"Model {model} cannot be loaded. {chosen}", code=Code.FAILED_PRECONDITION, model=model
            )
        site = self._sites[chosen]
        if site.down is not None:
            raise RuntimeUnavailable(
                f"Model {model} has to wait. {site.down}", model=model, retry_after_s=site.down.retry_after_s
            )
        return site

    def loads_of(self, model: str, record: ModelRecord, copy: Copy | None) -> Loads:
        """The loads that a want of the model belongs to: those of its copy, else of the site that serves it. Raises as
        `serving`."""
        return (self.serving(model, record) if copy is None else self.holding(copy)).loads

    def thrashing(self, model: str, copy: Copy | None, now_s: float) -> Thrashing | None:
        """Whether the working set of the runtime that serves the model does not fit."""
        record = self._record_of(model)
        try:
            site = self.holding(copy) if copy is not None else self.serving(model, record) if record else None
        except ModelMeshError:
            return None
        return None if site is None else site.budget.thrash.judge(now_s)

    # --- wants that outlive a copy --------------------------------------------------------------------------

    def cancel(self, copy: Copy) -> None:
        """What is registered under the id is gone or another, and the copy is not loaded: a queued load leaves the queue, a
        running one is stopped."""
        if copy.state is State.QUEUED:
            self.holding(copy).loads.drop(copy)
            self.requeue(copy)
        elif copy.state is State.LOADING:
            self.holding(copy).loads.cancel(copy)

    def requeue(self, copy: Copy) -> None:
        """The copy is gone (unloaded, lost). If it is wanted again meanwhile, or held, it is queued where its model is served
        now. A load that failed is not tried again only because its model is held."""
        want, record = copy.want, self._record_of(copy.model)
        if want is None and not (copy.holds and copy.was_loaded):
            return
        try:
            if record is None:
                raise ModelNotFound.named(copy.model)
            loads = self.serving(copy.model, record).loads
        except ModelMeshError as error:
            self.holding(copy).loads.tell(copy, error)
            return
        copy.want = None
        loads.wanted_again(copy, record, want)

    # --- all of them ----------------------------------------------------------------------------------------

    def ledger(self) -> LedgerView:
        """The accounts of all runtimes, summed."""
        views = [site.budget.ledger.view() for site in self._sites]
        return LedgerView(
            capacity_bytes=sum(view.capacity_bytes for view in views),
            loaded_bytes=sum(view.loaded_bytes for view in views),
            loading_bytes=sum(view.loading_bytes for view in views),
            unloading_bytes=sum(view.unloading_bytes for view in views),
            unattributed_bytes=sum(view.unattributed_bytes for view in views),
        )

    def memory(self) -> Sequence[tuple[str, int, int, int]]:
        """As `Runtime.memory`, of all; with several runtimes the names say whose."""
        several = len(self._sites) > 1
        return [
            (f"{site.offer.name}/{name}" if several else name, pss, base, charged)
            for site in self._sites
            if site.running
            for name, pss, base, charged in site.runtime.memory()
        ]
