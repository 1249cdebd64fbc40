"""An event loop with virtual time: waiting costs nothing, and the same program always runs in the same order."""

from __future__ import annotations

import asyncio
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
STEPS_MAX: Final = 2_000_000


class Stuck(Exception):
    """Nothing is ready and no timer is set: the program waits for something that cannot come. Or it never rests."""


class _NoSelector:
    """Stands where BaseEventLoop waits for sockets; waiting moves the clock instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        if timeout_s is None:
            raise Stuck("Nothing is ready and no timer is set.")
        self._loop.advance(timeout_s)
        return []

    def close(self) -> None:
        pass


class VirtualLoop(BaseEventLoop):
    """No sockets, no threads, no signals. `after_step` is called after every round of callbacks, for checking invariants."""

    def __init__(self, after_step: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._selector = _NoSelector(self)
        self._now_s = 0.0
        self._steps = 0
        self._clock_resolution = 1e-9
        self.after_step = after_step
        self.errors: list[BaseException] = []
        """What callbacks raised: in a simulation each is a failure."""
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self._now_s

    def advance(self, duration_s: float) -> None:
        """Move the clock, exactly to the next timer when that is what is waited for."""
        target_s = self._now_s + duration_s
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        if timers and abs(timers[0].when() - target_s) < 1e-6:
            target_s = timers[0].when()
        self._now_s = max(self._now_s, target_s)

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise Stuck(f"No rest after {STEPS_MAX} steps, at {self._now_s:.3f} s.")
        if self.after_step is not None:
            self.after_step()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.errors.append(error if isinstance(error, BaseException) else Stuck(str(context.get("message"))))


def run(main: Coroutine[Any, Any, T], after_step: Callable[[], None] | None = None) -> T:
    """Run `main` to its end under virtual time. Raises what it raises, else the first error of any callback or task
    nobody looked at."""
    loop = VirtualLoop(after_step)
    asyncio.set_event_loop(loop)
    try:
        result = loop.run_until_complete(main)
    finally:
        loop.after_step = None
        _end_tasks(loop)
        asyncio.set_event_loop(None)
        loop.close()
    if loop.errors:
        raise loop.errors[0]
    return result


def _end_tasks(loop: VirtualLoop) -> None:
    """Cancel what still runs, and let it end."""
    loop.call_soon(loop.stop)
    loop.run_forever()  # when `main` ended in the very step that broke an invariant, its own stop is still to come
    pending = [task for task in asyncio.all_tasks(loop) if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
