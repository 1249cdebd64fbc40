"""Standing load failures: while one stands, requests are refused at once with its reason.

What was away (files, storage, a model server) is looked for again after a second, all such models together at most ten times a
second; and the first model that loads again after such a failure ends the waiting of all, for what ailed it has passed.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

from modelmesh.clock import Clock
from modelmesh.errors import Code, LoadFailed, ModelMeshError, ModelTooLarge, code_of
from modelmesh.mesh.views import Failure
from modelmesh.policy.backoff import PERMANENT_S, Nature, look_s, stands_s

TOO_LARGE_S = 5.0
"""A model larger than the budget is looked at again after this: the budget moves when bases or workers change."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A failure, when it happened and until when it stands (monotonic seconds). `count` in a row."""

    error: ModelMeshError
    at_s: float
    expires_s: float
    count: int
    artefact: int = 0
    """What it is a failure of, where that is known."""

    @property
    def permanent(self) -> bool:
        """Whether the same artefact will fail again."""
        return is_permanent(self.error)

    @property
    def nature(self) -> Nature:
        return nature(self.error)

    def outlook(self, now_s: float) -> str:
        """When the model is tried again, in words."""
        left_s = max(ceil(self.expires_s - now_s), 1)
        return f"Tried again in {left_s} s." if left_s < 120 else f"Tried again in {ceil(left_s / 60)} min."


def is_permanent(error: ModelMeshError) -> bool:
    """Whether the same artefact will fail again: a bad artefact, or one that never fits."""
    return isinstance(error, ModelTooLarge) or (isinstance(error, LoadFailed) and error.permanent)


def nature(error: ModelMeshError) -> Nature:
    """What an error of a load tells of the next one."""
    if code_of(error) in (Code.NOT_FOUND, Code.UNAVAILABLE):
        return Nature.AWAY
    return Nature.BAD if is_permanent(error) else Nature.PASSING


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
        self._may_pass: dict[str, None] = {}
        """Those whose failure may be over when another's is."""
        self._look_s = 0.0
        """The last turn given to a model to be looked for again (monotonic)."""
        self.told_of: Callable[[str], None] = _nobody
        """Called with each model whose failure is recorded or forgotten, for those who tell other instances."""

    def record(
        self, model: str, error: ModelMeshError, artefact: int = 0, *, took_s: float = 0.0
    ) -> Standing:
        """A load failed now, of this artefact (`copies.identity`), after so long."""
        now_s = self._clock.monotonic_s()
        before = self._table.pop(model, None)
        count = before.count + 1 if before is not None else 1
        suggested_s = TOO_LARGE_S if isinstance(error, ModelTooLarge) else error.retry_after_s
        kind = nature(error)
        expires_s = now_s + stands_s(count, kind, self._rng, suggested_s, permanent_s=self.permanent_s)
        self._may_pass.pop(model, None)
        if kind is not Nature.BAD and suggested_s is None:
            self._may_pass[model] = None
        if kind is Nature.AWAY and suggested_s is None:
            self._look_s = look_s(self._look_s, now_s, took_s)
            expires_s = max(expires_s, self._look_s)
        standing = self._table[model] = Standing(error, now_s, expires_s, count, artefact)
        self.told_of(model)
        if len(self._table) > self._capacity:
            self._drop(next(iter(self._table)))
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
        if self._drop(model):
            self.told_of(model)

    def _drop(self, model: str) -> bool:
        self._may_pass.pop(model, None)
        return self._table.pop(model, None) is not None

    def loaded(self, model: str) -> int:
        """A load succeeded. When one of it had failed for what may pass, that has passed: the others that failed so are tried
        again when they are asked for. Returns how many."""
        passed = model in self._may_pass
        self.forget(model)
        return self._pass_all() if passed else 0

    def _pass_all(self) -> int:
        now_s, n = self._clock.monotonic_s(), 0
        self._look_s = now_s
        for model in self._may_pass:
            standing = self._table[model]
            if standing.expires_s > now_s:
                self._table[model] = replace(standing, expires_s=now_s)
                self.told_of(model)
                n += 1
        self._may_pass.clear()
        return n

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
            permanent=standing.nature is Nature.BAD,
            count=standing.count,
        )


def _nobody(model: str) -> None:
    """No other instances are told."""
