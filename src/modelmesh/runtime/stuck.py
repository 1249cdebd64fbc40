"""Batches that do not end. A model's code cannot be interrupted, so its worker is all that can be ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from modelmesh.dataplane.executing import Execution

CHECK_S: Final = 1.0
"""Between two looks at what runs."""
GRACE_S: Final = 2.0
"""The worker itself tells those who wait that their batch was given up; only then it is ended."""


class StuckBatches:
    """Remembers since when each batch has been seen to run. Times are monotonic seconds, passed in."""

    def __init__(self, stuck_after_s: float) -> None:
        self._bound_s = stuck_after_s + GRACE_S
        self._since_s: dict[tuple[int, Execution], float] = {}

    def overdue(self, running: Iterable[tuple[int, Execution]], now_s: float) -> set[tuple[int, Execution]]:
        """What has run for too long, of all that runs now: batches with the id of their worker's target."""
        self._since_s = {batch: self._since_s.get(batch, now_s) for batch in running}
        return {batch for batch, since_s in self._since_s.items() if now_s - since_s >= self._bound_s}
