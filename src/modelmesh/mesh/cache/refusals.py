"""Saying no: to all that wait for a model or a name, with the honest code, the reason and when to come back."""

from __future__ import annotations

from collections.abc import Callable

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import DataPlane, Name
from modelmesh.errors import ModelMeshError, ModelTooLarge, NoCapacity, code_of, http_status_of
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.failures import Standing
from modelmesh.mesh.measures import Measures
from modelmesh.mesh.tuning import Tuning
from modelmesh.policy.thrash import WINDOW_S, Thrashing
from modelmesh.settings.sizes import format_size


class Refusals:
    """Counts, journals and passes on every refusal of this instance. `thrashing` tells of a model whether the working set of
    its runtime does not fit."""

    def __init__(
        self,
        dataplane: DataPlane,
        clock: Clock,
        journal: Journal,
        measures: Measures,
        thrashing: Callable[[str], Thrashing | None],
        tuning: Tuning,
    ) -> None:
        self._dataplane = dataplane
        self._clock = clock
        self._journal = journal
        self._measures = measures
        self._thrashing = thrashing
        self._tuning = tuning
        self.total = 0
        self.on_failure: Callable[[str, ModelMeshError], None] = lambda model, error: None
        """Called when requests are refused because of a failure that stands."""

    def model(self, model: str, error: ModelMeshError, standing: Standing | None, waiting: int) -> None:
        """Refuse all that wait for a model. While a failure stands, those that come are refused without asking again."""
        now_s = self._clock.monotonic_s()
        retry_after_s = error.retry_after_s
        cache_s = 0.0
        if standing is not None:
            remaining_s = standing.expires_s - now_s
            retry_after_s = None if standing.permanent else remaining_s
            cache_s = min(remaining_s, self._tuning.failure_cache_s)
        text = str(error) if standing is None else f"{error} ({standing.outlook(now_s)})"
        for_now = isinstance(error, NoCapacity) and not isinstance(error, ModelTooLarge)
        thrashing = self._thrashing(model) if for_now else None
        if thrashing is not None:
            text = f"{text} {thrashing_sentence(thrashing)}"
        retry_after_ms = -1 if retry_after_s is None else round(retry_after_s * 1000)
        self._dataplane.refuse(
            model, code_of(error), text, retry_after_ms, round(cache_s * 1000), http_status_of(error)
        )
        self._count(waiting)
        if waiting and standing is not None:
            self.on_failure(model, standing.error)
        if waiting:
            when = {} if retry_after_s is None else {"retry_after_s": retry_after_s}
            self._journal.record(
                Did.REFUSED,
                model,
                f"Refused: {text}",
                waiting=waiting,
                code=code_of(error).name,
                **when,
                failures=standing.count if standing is not None else 0,
            )

    def name(self, name: Name, error: ModelMeshError, waiting: int, cache_s: float) -> None:
        """Refuse all that asked for a name that cannot be resolved, for `cache_s` also those that come."""
        retry_after_ms = -1 if error.retry_after_s is None else round(error.retry_after_s * 1000)
        self._dataplane.refuse_name(
            name, code_of(error), str(error), retry_after_ms, round(cache_s * 1000), http_status_of(error)
        )
        self._count(waiting)
        self._journal.record(
            Did.REFUSED,
            name.name,
            f"Refused: {error}",
            waiting=waiting,
            code=code_of(error).name,
            kind=name.kind.name,
        )

    def late(self, model: str, ready_in_s: float, patience_s: float, queue: int) -> None:
        """Those who wait for a model are being refused by the data plane: it cannot be ready in time."""
        self._count(1)
        thrashing = self._thrashing(model)
        self._journal.record(
            Did.REFUSED,
            model,
            f"Refused: it can be ready in {ready_in_s:.2f} s, but the last request waits only "
            f"{max(patience_s, 0.0):.2f} s more.{' ' + thrashing_sentence(thrashing) if thrashing else ''}",
            ready_in_s=ready_in_s,
            patience_s=patience_s,
            queue=queue,
        )

    def _count(self, n: int) -> None:
        self.total += n
        if n:
            self._measures.count("modelmesh_refusals", n)


def thrashing_sentence(seen: Thrashing) -> str:
    """What is wrong when the working set does not fit, with the bytes that would put it right."""
    return (
        f"The working set does not fit: {seen.returns} of {seen.loads} loads in the last {WINDOW_S:.0f} s brought back a "
        f"model evicted shortly before. About {format_size(seen.lacking_bytes)} more memory would stop it."
    )
