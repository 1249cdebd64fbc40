"""Standing load failures: while one stands, requests are refused at once with its reason."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from modelmesh.clock import Clock
from modelmesh.errors import Code, LoadFailed, ModelMeshError, ModelTooLarge, code_of
from modelmesh.mesh.views import Failure
from modelmesh.policy.backoff import PERMANENT_S, Nature, stands_s

TOO_LARGE_S = 5.0
"""A model larger than the budget is looked at again after this: the budget moves when bases or workers change."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A failure, when it happened and until when it stands (monotonic seconds). `count` in a row."""

    error: ModelMeshError
    at_s: float
    expires_s: float
    permanent: bool
    count: int
    artefact: int = 0
    """What it is a failure of, where that is known."""


def is_permanent(error: ModelMeshError) -> bool:
    """Whether the same artefact will fail again: a bad artefact, or one that never fits."""
    return isinstance(error, ModelTooLarge) or (isinstance(error, LoadFailed) and error.permanent)


def _nature(error: ModelMeshError) -> Nature:
    if not is_permanent(error):
        return Nature.PASSING
    return Nature.ABSENT if code_of(error) is Code.NOT_FOUND else Nature.BAD


class Failures:
    """The newest failure of each model, at most `capacity`. An expired one is kept, so that the next in a row waits
    longer; success or unregistration forgets it. A bad artefact's stands `permanent_s`."""

    def __init__(
        self, clock: Clock, rng: random.Random, capacity: int, permanent_s: float = PERMANENT_S
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._capacity = capacity
        self.permanent_s = permanent_s
        """May be changed: it counts from the next failure on."""
        self._table: OrderedDict[str, Standing] = OrderedDict()
        self.told_of: Callable[[str], None] = _nobody
        """Called with each model whose failure is recorded or forgotten, for those who tell other instances."""

    def record(self, model: str, error: ModelMeshError, artefact: int = 0) -> Standing:
        """A load failed now, of this artefact (`copies.identity`)."""
        now_s = self._clock.monotonic_s()
        before = self._table.pop(model, None)
        count = before.count + 1 if before is not None else 1
        suggested_s = TOO_LARGE_S if isinstance(error, ModelTooLarge) else error.retry_after_s
        expires_s = now_s + stands_s(
            count, _nature(error), self._rng, suggested_s, permanent_s=self.permanent_s
        )
        standing = self._table[model] = Standing(
            error, now_s, expires_s, is_permanent(error), count, artefact
        )
        self.told_of(model)
        if len(self._table) > self._capacity:
            self._table.popitem(last=False)
        return standing

    def standing(self, model: str) -> Standing | None:
        """The failure that stands now, or None."""
        failure = self._table.get(model)
        return failure if failure is not None and self._clock.monotonic_s() < failure.expires_s else None

    def models(self) -> list[str]:
        """The models with a standing failure, the longest failed first."""
        return [model for model in self._table if self.standing(model) is not None]

    def forget_too_large(self) -> None:
        """The budget grew: what did not fit may fit now."""
        for model in [m for m, standing in self._table.items() if isinstance(standing.error, ModelTooLarge)]:
            self.forget(model)

    def replaced(self, model: str, artefact: int) -> None:
        """This artefact is registered under the id: what failed of another does not count any more."""
        if self._table[model].artefact != artefact:
            self.forget(model)

    def __contains__(self, model: str) -> bool:
        """Whether a failure of it is remembered, standing or not."""
        return model in self._table

    def forget(self, model: str) -> None:
        if self._table.pop(model, None) is not None:
            self.told_of(model)

    def view(self, model: str) -> Failure | None:
        """The standing failure for the faces, in wall time."""
        standing = self.standing(model)
        if standing is None:
            return None
        from_monotonic_s = self._clock.wall_s() - self._clock.monotonic_s()
        return Failure(
            reason=str(standing.error),
            code=code_of(standing.error),
            at_wall_s=standing.at_s + from_monotonic_s,
            expires_wall_s=standing.expires_s + from_monotonic_s,
            permanent=standing.permanent,
            count=standing.count,
        )


def _nobody(model: str) -> None:
    """No other instances are told."""
