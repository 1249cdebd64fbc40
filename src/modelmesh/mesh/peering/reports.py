"""Frozen views of models and of the instance, assembled when asked for. Nothing is kept for them."""

from __future__ import annotations

from modelmesh.clock import Clock
from modelmesh.errors import ModelNotFound, code_of
from modelmesh.mesh.cache.copies import Copies, Copy
from modelmesh.mesh.cache.failures import Failures, nature
from modelmesh.mesh.cache.histories import Histories, History
from modelmesh.mesh.fleet import FailedThere, Fleet
from modelmesh.mesh.views import CopyView, Failure, ModelView, State
from modelmesh.policy.backoff import Nature
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import ModelRecord


class Reports:
    """Reads the mirror, the copies, the failures and the histories, and what the others told; no fleet: there are none."""

    def __init__(
        self,
        mirror: Mirror,
        copies: Copies,
        failures: Failures,
        histories: Histories,
        clock: Clock,
        instance: str = "local",
        fleet: Fleet | None = None,
    ) -> None:
        self._instance = instance
        self._mirror = mirror
        self._copies = copies
        self._failures = failures
        self._histories = histories
        self._clock = clock
        self._fleet = fleet

    def state(self, model: str) -> State:
        """The best state of a registered model in any instance: loaded, loading, queued, failed, unloading, cold."""
        copy, fleet = self._copies.get(model), self._fleet or ()
        if (copy is not None and copy.state is State.LOADED) or any(peer.holds(model) for peer in fleet):
            return State.LOADED
        if any(peer.loads(model) for peer in fleet):
            return State.LOADING
        # What is left of a load that failed is unloaded, too.
        if copy is not None and not (copy.state is State.UNLOADING and copy.want is None):
            return copy.state
        if self._failures.standing(model) is not None or self._failed_elsewhere(model):
            return State.FAILED
        return State.COLD if copy is None else copy.state

    def model(self, model: str) -> ModelView:
        """Raises ModelNotFound when it is not registered."""
        record = self._mirror.model(model)
        if record is None:
            raise ModelNotFound.named(model)
        return self._view(model, record)

    def _view(self, model: str, record: ModelRecord) -> ModelView:
        copy = self._copies.get(model)
        loaded = copy if copy is not None and copy.state in (State.LOADED, State.UNLOADING) else None
        history = copy.history if copy is not None else self._histories.peek(model)
        now_s = self._clock.monotonic_s()
        failure, elsewhere = self._failures.view(model), self._elsewhere(model)
        copies = (*self._copy_here(copy, failure), *elsewhere)
        served = [each for each in copies if each.state is State.LOADED]
        if served:
            rate_per_s = sum(each.requests_per_s for each in served)
        else:
            rate_per_s = history.rate_per_s(now_s) if history is not None else 0.0
        uses_s = [record.last_used_ms / 1000, self._used_wall_s(history)]
        uses_s += [each.last_used_wall_s for each in copies]
        told_bytes = max((each.size_bytes for each in elsewhere), default=0) or record.size_bytes
        want = copy.want if copy is not None else None
        return ModelView(
            id=model,
            names=tuple(self._mirror.names_of(model)),
            type=record.type,
            path=record.path,
            state=self.state(model),
            size_bytes=loaded.size_bytes if loaded is not None else told_bytes,
            size_measured=loaded.measured if loaded is not None else bool(served and record.size_bytes),
            load_s=loaded.load_s if loaded is not None else record.load_ms / 1000,
            requests_per_s=rate_per_s,
            requests_total=history.requests_total if history is not None else 0,
            last_used_wall_s=max(uses_s),
            loads_total=history.loads_total if history is not None else 0,
            replicas=len(copy.replicas) if copy is not None else 0,
            in_flight=copy.in_flight if copy is not None else 0,
            waiting=want.waiting if want is not None else 0,
            pinned_by=", ".join(copy.holds) if copy is not None else "",
            failure=failure or self._failure_elsewhere(model),
            keep=record.keep,
            copies=copies,
        )

    def _used_wall_s(self, history: History | None) -> float:
        """When it was last used here; 0: never."""
        if history is None or not history.count:
            return 0.0
        return self._clock.wall_s() - (self._clock.monotonic_s() - history.last_s)

    def _copy_here(self, copy: Copy | None, failure: Failure | None) -> tuple[CopyView, ...]:
        """The copy of this instance: the one there is, else the one that failed."""
        leaving = copy is not None and copy.state is State.UNLOADING
        if copy is not None and not (leaving and copy.want is None):
            now_s = self._clock.monotonic_s()
            began_wall_s = self._clock.wall_s() - (now_s - copy.began_s)
            if copy.state is not State.LOADED:
                return (CopyView(self._instance, State.QUEUED if leaving else copy.state, began_wall_s),)
            rate_per_s, used_s = copy.history.rate_per_s(now_s), self._used_wall_s(copy.history)
            return (
                CopyView(self._instance, State.LOADED, began_wall_s, "", copy.size_bytes, rate_per_s, used_s),
            )
        if failure is not None:
            return (CopyView(self._instance, State.FAILED, failure.at_wall_s, failure.reason),)
        return ()

    def _elsewhere(self, model: str) -> list[CopyView]:
        """The copies of other instances, and what failed there."""
        views: list[CopyView] = []
        wall_s = self._clock.wall_s()
        for peer in self._fleet or ():
            known = peer.copies.get(model)
            if known is not None and not known.loaded:
                views.append(CopyView(peer.id, State.LOADING, 0.0))
            elif known is not None and peer.holds(model):
                rate_per_s, used_s = known.rate_at(wall_s), known.last_used_wall_ms / 1000
                views.append(CopyView(peer.id, State.LOADED, 0.0, "", known.size_bytes, rate_per_s, used_s))
        for id, failed in self._failed_elsewhere(model):
            at_wall_s = wall_s - (self._clock.monotonic_s() - failed.told_s)
            views.append(CopyView(id, State.FAILED, at_wall_s, str(failed.error)))
        return sorted(views, key=lambda view: view.instance)

    def _failed_elsewhere(self, model: str) -> list[tuple[str, FailedThere]]:
        """The failures that stand in other instances, the newest first."""
        return [] if self._fleet is None else self._fleet.failures(model, self._clock.monotonic_s())

    def _failure_elsewhere(self, model: str) -> Failure | None:
        for _, failed in self._failed_elsewhere(model):
            wall_s = self._clock.wall_s() - self._clock.monotonic_s()
            return Failure(
                reason=str(failed.error),
                code=code_of(failed.error),
                at_wall_s=failed.told_s + wall_s,
                expires_wall_s=failed.expires_s + wall_s,
                permanent=nature(failed.error) is Nature.BAD,
                count=1,
            )
        return None

    def oldest_use_wall_s(self) -> float:
        """When the least recently used loaded copy was used (loaded, if never); 0 when nothing is loaded."""
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        uses_s = [
            copy.history.last_s if copy.history.count else copy.since_s
            for copy in self._copies
            if copy.state is State.LOADED
        ]
        return wall_s - (now_s - min(uses_s)) if uses_s else 0.0
