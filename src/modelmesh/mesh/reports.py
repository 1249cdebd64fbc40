"""Frozen views of models and of the instance, assembled when asked for. Nothing is kept for them."""

from __future__ import annotations

from collections.abc import Callable

from modelmesh.clock import Clock
from modelmesh.errors import ModelNotFound
from modelmesh.mesh.control import Page
from modelmesh.mesh.copies import Copies, Copy
from modelmesh.mesh.failures import Failures
from modelmesh.mesh.histories import Histories
from modelmesh.mesh.others import Others
from modelmesh.mesh.views import CopyView, Failure, ModelView, State
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import ModelRecord

_PAGE = 1000


class Reports:
    """Reads the mirror, the copies, the failures and the histories."""

    def __init__(
        self,
        mirror: Mirror,
        copies: Copies,
        failures: Failures,
        histories: Histories,
        clock: Clock,
        instance: str = "local",
        others: Others | None = None,
    ) -> None:
        self._instance = instance
        self._mirror = mirror
        self._copies = copies
        self._failures = failures
        self._histories = histories
        self._clock = clock
        self._others = others

    def state(self, model: str) -> State:
        """The state of a registered model."""
        copy = self._copies.get(model)
        if copy is not None and copy.state is not State.UNLOADING:
            return copy.state
        if self._others is not None:
            elsewhere = {state for _, state in self._others.states(model)}
            for state in (State.LOADED, State.LOADING):
                if state in elsewhere:
                    return state
        if copy is not None:
            return copy.state
        return State.COLD if self._failures.standing(model) is None else State.FAILED

    def model(self, model: str) -> ModelView:
        """Raises ModelNotFound when it is not registered."""
        record = self._mirror.model(model)
        if record is None:
            raise ModelNotFound.named(model)
        return self._view(model, record)

    def models(self, prefix: str, state: State | None, after: str, limit: int) -> Page:
        """The page after `after`. With a state only models in it, which costs a look at those that are not cold, or, for
        cold ones, at the mirror page by page."""
        if state is None:
            found = self._mirror.page(prefix, after, limit + 1)
            total = self._mirror.count(prefix)
        elif state is State.COLD:
            found = self._cold(prefix, after, limit + 1)
            total = self._mirror.count(prefix) - len(
                self._warm(prefix, lambda state: state is not State.COLD)
            )
        else:
            ids = self._warm(prefix, lambda known: known is state)
            total = len(ids)
            page = sorted(model for model in ids if model > after)[: limit + 1]
            found = [(model, record) for model in page if (record := self._mirror.model(model)) is not None]
        views = [self._view(model, record) for model, record in found[:limit]]
        return Page(views, views[-1].id if len(found) > limit and views else "", total)

    def _warm(self, prefix: str, wanted: Callable[[State], bool]) -> list[str]:
        """Registered models that have a copy or a standing failure, and are in a wanted state."""
        candidates = dict.fromkeys(copy.model for copy in self._copies)
        candidates.update(dict.fromkeys(self._failures.models()))
        return [
            model
            for model in candidates
            if model.startswith(prefix)
            and wanted(self.state(model))
            and self._mirror.model(model) is not None
        ]

    def _cold(self, prefix: str, after: str, limit: int) -> list[tuple[str, ModelRecord]]:
        found: list[tuple[str, ModelRecord]] = []
        while len(found) < limit:
            page = self._mirror.page(prefix, after, _PAGE)
            found.extend(item for item in page if self.state(item[0]) is State.COLD)
            if len(page) < _PAGE:
                break
            after = page[-1][0]
        return found[:limit]

    def _view(self, model: str, record: ModelRecord) -> ModelView:
        copy = self._copies.get(model)
        loaded = copy is not None and copy.state in (State.LOADED, State.UNLOADING)
        history = copy.history if copy is not None else self._histories.peek(model)
        now_s = self._clock.monotonic_s()
        last_used_wall_s = record.last_used_ms / 1000
        if history is not None and history.count:
            last_used_wall_s = max(last_used_wall_s, self._clock.wall_s() - (now_s - history.last_s))
        want = copy.want if copy is not None else None
        failure = self._failures.view(model)
        return ModelView(
            id=model,
            names=tuple(self._mirror.names_of(model)),
            type=record.type,
            path=record.path,
            state=self.state(model),
            size_bytes=copy.size_bytes if copy is not None and loaded else record.size_bytes,
            size_measured=copy is not None and loaded and copy.measured,
            load_s=copy.load_s if copy is not None and loaded else record.load_ms / 1000,
            requests_per_s=history.rate_per_s(now_s) if history is not None else 0.0,
            requests_total=history.requests_total if history is not None else 0,
            last_used_wall_s=last_used_wall_s,
            loads_total=history.loads_total if history is not None else 0,
            replicas=len(copy.replicas) if copy is not None else 0,
            in_flight=copy.in_flight if copy is not None else 0,
            waiting=want.waiting if want is not None else 0,
            pinned_by=", ".join(copy.holds) if copy is not None else "",
            failure=failure,
            keep=record.keep,
            copies=(*self._copy_views(copy, failure), *self._elsewhere(model)),
        )

    def _copy_views(self, copy: Copy | None, failure: Failure | None) -> tuple[CopyView, ...]:
        """The copy here: the one there is, else the one that failed."""
        leaving = copy is not None and copy.state is State.UNLOADING
        if copy is not None and not (leaving and copy.want is None):
            began_wall_s = self._clock.wall_s() - (self._clock.monotonic_s() - copy.began_s)
            return (CopyView(self._instance, State.QUEUED if leaving else copy.state, began_wall_s),)
        if failure is not None:
            return (CopyView(self._instance, State.FAILED, failure.at_wall_s, failure.reason),)
        return ()

    def _elsewhere(self, model: str) -> list[CopyView]:
        """The copies of other instances."""
        if self._others is None:
            return []
        return [CopyView(id, state, 0.0) for id, state in self._others.states(model)]

    def oldest_use_wall_s(self) -> float:
        """When the least recently used loaded copy was used (loaded, if never); 0 when nothing is loaded."""
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        uses_s = [
            copy.history.last_s if copy.history.count else copy.since_s
            for copy in self._copies
            if copy.state is State.LOADED
        ]
        return wall_s - (now_s - min(uses_s)) if uses_s else 0.0
