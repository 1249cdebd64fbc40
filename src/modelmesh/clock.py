"""Time, passed in. Decisions never read a clock of their own, so that tests and the simulator can own it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Two readings of time: `monotonic_s` for durations and deadlines, `wall_s` (Unix epoch) for records."""

    def monotonic_s(self) -> float: ...

    def wall_s(self) -> float: ...


class LoopClock:
    """The clock of the running event loop: real in production, virtual in the simulator, which also gives it
    a wall clock that starts at `wall_start_s`. Waiting is asyncio's own (`asyncio.sleep`, `asyncio.timeout`)."""

    def __init__(self, wall_start_s: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._wall_offset_s = None if wall_start_s is None else wall_start_s - self._loop.time()

    def monotonic_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return time.time() if self._wall_offset_s is None else self._loop.time() + self._wall_offset_s
