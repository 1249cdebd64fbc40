"""Reading what the data plane counted: uses feed rates, residents, the shadow, and lazily the records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import DataPlane, Usage
from modelmesh.mesh.cache.copies import Copies, Copy
from modelmesh.mesh.cache.histories import Histories
from modelmesh.mesh.cache.routes import PEER_IDS_FROM
from modelmesh.mesh.views import State

ACTIVE_US: Final = 20_000
"""Of execution between two readings; less cannot keep a server busy."""
EXECUTION_WEIGHT: Final = 0.2
"""Of a new reading in the mean of what a request takes."""


class UsageReader:
    """`on_used(copy, wall_ms)` is told of each copy that was used, `on_row` of all that copies here served."""

    def __init__(
        self,
        dataplane: DataPlane,
        copies: Copies,
        histories: Histories,
        clock: Clock,
        on_used: Callable[[Copy, int], None],
        on_row: Callable[[Usage], None],
    ) -> None:
        self._dataplane = dataplane
        self._copies = copies
        self._histories = histories
        self._clock = clock
        self._on_used = on_used
        self._on_row = on_row
        self._busy: dict[str, Copy] = {}
        self._active: dict[str, Copy] = {}
        self.requests_total = 0
        self.busy_s = 0.0
        """What the model servers spent on requests, all together."""
        self._read_s = float("-inf")

    def read(self, older_than_s: float = 0.0) -> None:
        """Take the counts, unless they were taken less than `older_than_s` ago."""
        now_s = self._clock.monotonic_s()
        if now_s - self._read_s < older_than_s:
            return
        self._read_s = now_s
        for copy in self._busy.values():
            copy.in_flight = 0
        self._busy.clear()
        rows = sorted(self._dataplane.take_usage(), key=lambda row: (-row.last_used_ms_ago, row.replica_id))
        for row in rows:
            self._take(row, now_s)

    def take_active(self) -> list[Copy]:
        """The copies that had requests in flight at a reading since the last call, or executed for a good part of the time."""
        active, self._active = self._active, {}
        return list(active.values())

    def waited_load(self, copy: Copy) -> None:
        """A copy was loaded for requests that waited: together they are one use, now."""
        if not copy.resumed:
            return
        now_s = self._clock.monotonic_s()
        copy.history.record(now_s)
        copy.budget.residents.refresh(copy)
        copy.budget.shadow.used(copy.model, copy.size_bytes, copy.load_s, copy.history, now_s)

    def _take(self, row: Usage, now_s: float) -> None:
        if row.replica_id >= PEER_IDS_FROM:
            return  # its holder counts it
        self._on_row(row)
        self.requests_total += row.requests
        self.busy_s += row.execution_us / 1e6
        copy = self._copies.get(row.model)
        history = copy.history if copy is not None else self._histories.peek(row.model)
        if history is None:
            return
        history.requests_total += row.requests
        if copy is None or copy.state is not State.LOADED:
            return
        if row.in_flight:
            copy.in_flight += row.in_flight
            self._busy[copy.model] = copy
        if row.in_flight or row.execution_us >= ACTIVE_US:
            self._active[copy.model] = copy
        if row.execution_us:
            copy.busy_s += row.execution_us / 1e6
            each_s = row.execution_us / 1e6 / max(row.requests, 1)
            copy.execution_s += EXECUTION_WEIGHT * (each_s - copy.execution_s) if copy.execution_s else each_s
        resumed = min(row.requests, copy.resumed)
        copy.resumed -= resumed
        uses = row.requests - resumed
        if row.requests:
            ago_s = row.last_used_ms_ago / 1000
            self._on_used(copy, round((self._clock.wall_s() - ago_s) * 1000))
            if uses:
                used_s = now_s - ago_s
                copy.history.record(used_s, uses)
                copy.budget.residents.used(copy)
                copy.budget.shadow.used(copy.model, copy.size_bytes, copy.load_s, copy.history, used_s)
