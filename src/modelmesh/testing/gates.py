"""Requests of the simulator's data plane that wait for a slot: in deadline order, told of as long as they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

TELL_EVERY_S: Final = 0.05


class Waiter(Protocol):
    """A request."""

    model: str
    deadline_s: float


W = TypeVar("W", bound=Waiter)


class Gates(Generic[W]):
    """One queue per model. `tell(model, queued, oldest_ms)` is called when the first comes, then every 50 ms until the last
    leaves."""

    def __init__(self, tell: Callable[[str, int, int], None]) -> None:
        self._tell = tell
        self._queues: dict[str, dict[int, tuple[W, float]]] = {}
        """Model -> who waits, since when."""
        self._telling: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def join(self, waiter: W) -> None:
        """Wait, until `leave`."""
        loop = asyncio.get_running_loop()
        queue = self._queues.setdefault(waiter.model, {})
        queue[id(waiter)] = waiter, loop.time()
        if waiter.model not in self._telling:
            self._say(waiter.model)

    def leave(self, waiter: W) -> None:
        """No error when it did not wait."""
        queue = self._queues.get(waiter.model, {})
        if queue.pop(id(waiter), None) is not None and not queue:
            del self._queues[waiter.model]
            self._telling.pop(waiter.model).cancel()

    def first(self, model: str) -> W | None:
        """Who has the earliest deadline; None when nobody waits."""
        waiting = self._queues.get(model)
        return min(waiting.values(), key=lambda row: (row[0].deadline_s, row[1]))[0] if waiting else None

    def waiting(self, model: str) -> list[W]:
        return [waiter for waiter, _ in self._queues.get(model, {}).values()]

    def _say(self, model: str) -> None:
        loop = asyncio.get_running_loop()
        queue = self._queues[model]
        oldest_s = min(since_s for _, since_s in queue.values())
        self._telling[model] = loop.call_later(TELL_EVERY_S, self._say, model)
        self._tell(model, len(queue), round((loop.time() - oldest_s) * 1000))
