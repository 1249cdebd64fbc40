"""What queued copies will need: asked of the runtime, a few at a time, and without a task where it knows at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from math import ceil
from typing import Any

from modelmesh.errors import Code, LoadFailed, LoadTimeout, ModelMeshError, ModelNotFound
from modelmesh.mesh.cache.budget import Budget
from modelmesh.mesh.cache.copies import Copies, Copy
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State
from modelmesh.registry.records import ModelRecord
from modelmesh.runtime.protocol import Estimate, ModelSpec, Runtime


class Estimates:
    """`on_failed` is told why a size cannot be had; `on_estimated` is awaited by the task that asked for one, `on_learned` called
    with each copy whose load time was unknown before."""

    def __init__(
        self,
        budget: Budget,
        copies: Copies,
        runtime: Runtime,
        tuning: Tuning,
        *,
        record_of: Callable[[str], ModelRecord | None],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        settle: Callable[[], None],
        on_learned: Callable[[Copy], None],
        on_estimated: Callable[[Copy], Awaitable[None]],
        on_failed: Callable[[Copy, ModelMeshError], None],
    ) -> None:
        self._budget = budget
        self._copies = copies
        self._runtime = runtime
        self._tuning = tuning
        self._record_of = record_of
        self._spawn = spawn
        self._settle = settle
        self._on_learned = on_learned
        self._on_estimated = on_estimated
        self._on_failed = on_failed
        self._unestimated: deque[Copy] = deque()
        """Queued copies whose estimate was not begun; those that left the queue are skipped."""
        self._estimating: dict[int, Copy] = {}

    def want(self, copy: Copy) -> None:
        """Estimate it when its turn comes (`start`)."""
        self._unestimated.append(copy)

    def start(self) -> None:
        """Begin as many as may be under way."""
        n_now = 0
        while self._unestimated and len(self._estimating) < self._tuning.estimates_max:
            copy = self._unestimated.popleft()
            if not self._is_queued(copy):
                continue
            if n_now < self._tuning.estimates_max and self._take_now(copy):
                n_now += 1
                continue
            self._estimating[id(copy)] = copy
            self._spawn(self._estimate(copy), f"estimate {copy.model}")

    def stands(self, copy: Copy) -> bool:
        """Whether its estimate stands. One that includes a growth of the server is made anew when the capacity moved since: the
        other load that moved it may have spared this one the growth."""
        estimate = copy.estimate
        if estimate is None:
            return False
        if not estimate.base_bytes or copy.estimated_capacity_bytes == self._budget.ledger.capacity_bytes:
            return True
        copy.estimate = None
        if not self._take_now(copy):
            self._unestimated.appendleft(copy)
        return copy.estimate is not None

    def _is_queued(self, copy: Copy) -> bool:
        return copy.state is State.QUEUED and self._copies.get(copy.model) is copy

    def _take_now(self, copy: Copy) -> bool:
        """Estimate without a task, as a model that was loaded before can be. Whether it was."""
        record = self._record_of(copy.model)
        estimate = None if record is None else self._runtime.estimate_now(spec_of(copy.model, record))
        if record is None or estimate is None:
            return False
        self._take(copy, record, estimate, self._budget.ledger.capacity_bytes)
        return True

    def _take(self, copy: Copy, record: ModelRecord, estimate: Estimate, capacity_bytes: int) -> None:
        copy.estimate = refined(estimate, record)
        copy.needed_bytes = copy.estimate.peak_bytes + copy.estimate.base_bytes
        copy.estimated_capacity_bytes = capacity_bytes
        if copy.load_s == 0.0 and copy.estimate.load_s > 0.0:
            copy.load_s = copy.estimate.load_s
            self._on_learned(copy)

    async def _estimate(self, copy: Copy) -> None:
        record, capacity_bytes = self._record_of(copy.model), self._budget.ledger.capacity_bytes
        error: ModelMeshError | None = None
        estimate: Estimate | None = None
        try:
            if record is None:
                raise ModelNotFound.named(copy.model)
            async with asyncio.timeout(self._tuning.estimate_timeout_s):
                estimate = await self._runtime.estimate(spec_of(copy.model, record))
        except TimeoutError:
            error = LoadTimeout(f"The size of model {copy.model} was not known in time.", model=copy.model)
        except ModelMeshError as raised:
            error = raised
        except Exception as raised:
            error = unexpected(copy.model, raised)
        finally:
            del self._estimating[id(copy)]
        if not self._is_queued(copy):
            self._settle()
        elif error is not None or estimate is None or record is None:
            self._on_failed(copy, error or unexpected(copy.model, ValueError("no estimate")))
            self._settle()
        else:
            self._take(copy, record, estimate, capacity_bytes)
            await self._on_estimated(copy)


def refined(estimate: Estimate, record: ModelRecord) -> Estimate:
    """The estimate with what was learned of the same content: its size, the peak in proportion, its load time."""
    same = not estimate.content or not record.content or estimate.content == record.content
    if not same or record.size_bytes <= 0:
        return estimate
    growth = estimate.peak_bytes / estimate.size_bytes if estimate.size_bytes > 0 else 1.0
    return replace(
        estimate,
        size_bytes=record.size_bytes,
        peak_bytes=max(ceil(record.size_bytes * growth), record.size_bytes),
        load_s=record.load_ms / 1000 or estimate.load_s,
    )


def spec_of(model: str, record: ModelRecord) -> ModelSpec:
    """What the runtime is told of a model."""
    return ModelSpec(id=model, type=record.type, path=record.path, key=record.key)


def unexpected(model: str, error: Exception) -> LoadFailed:
    """What those who wait are told of a bug, of ours or of a runtime."""
    failed = LoadFailed(
        f"Loading model {model} failed unexpectedly: {type(error).__name__}: {error}",
        code=Code.INTERNAL,
        model=model,
    )
    failed.__cause__ = error
    return failed
