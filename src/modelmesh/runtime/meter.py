"""The reading of all workers' memory, about once a second: sizes settle, capacity moves, swollen workers are named."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from modelmesh.runtime.control_channel import WorkerDied
from modelmesh.runtime.events import Events
from modelmesh.runtime.memory import Charge, capacity_bytes, unattributed_bytes
from modelmesh.runtime.protocol import CapacityChanged, SizeChanged
from modelmesh.runtime.seat import Seat, weight_bytes
from modelmesh.runtime.sizes import Sizes, Weight
from modelmesh.worker.control import Measure, Measured
from modelmesh.worker.memory import footprint

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
INTERVAL_S: Final = 1.0
PRESSED_S: Final = 0.25
"""Between two readings when loads are short of room."""
READING_SHARE_MAX: Final = 0.02
"""Readings take at most this share of the time; the kernel walks all pages for one."""
ANSWER_WAIT_S: Final = 0.5
"""A reading does not wait longer for a worker's answer; the answer counts when it comes."""
ANSWER_TIMEOUT_S: Final = 60.0
TELL_BYTES: Final = MIB
"""Smaller movements of capacity are not worth an event."""
SLACK_SHARE: Final = 0.03
"""Of what models may use: the free pages all workers together may keep."""
ALLOWANCE_SHARE: Final = 0.15
"""Of what the bases leave: kept back for free pages and temporary memory that no reading has seen yet. Found by the soak:
with sixty loads per second a twentieth let the peak pass the budget by a tenth."""
SWOLLEN_SHARE: Final = 0.2
SWOLLEN_BYTES_MIN: Final = 16 * MIB
SWOLLEN_S: Final = 10.0
"""A worker whose memory does not come back: more than this share of its part of the budget, for this long."""


class Meter:
    """Reads what the seats weigh and tells the mesh. `on_swollen` is called with a seat whose memory does not come back,
    `on_read` after each reading."""

    def __init__(
        self,
        budget_bytes: int,
        seats: Callable[[], list[Seat]],
        sizes: Sizes,
        events: Events,
        on_swollen: Callable[[Seat], None],
        on_read: Callable[[], None],
    ) -> None:
        self._budget_bytes = budget_bytes
        self._seats = seats
        self._sizes = sizes
        self._events = events
        self._on_swollen = on_swollen
        self._on_read = on_read
        self._told = (0, 0)
        self._reading_s = 0.0
        self._short = asyncio.Event()

    def share_bytes(self) -> int:
        """A worker's part of the budget."""
        return self._budget_bytes // max(1, len(self._seats()))

    def capacity_bytes(self) -> int:
        """What models may use now: what the bases leave, less an allowance for what comes up between two readings."""
        beside_bases_bytes = self._beside_bases_bytes()
        return beside_bases_bytes - int(beside_bases_bytes * ALLOWANCE_SHARE)

    def _beside_bases_bytes(self) -> int:
        return capacity_bytes(self._budget_bytes, [seat.account for seat in self._seats()])

    def free_bytes(self) -> int:
        """What of the budget is used by nothing and reserved for no load, by the newest readings."""
        accounts = [seat.account for seat in self._seats()]
        return self._budget_bytes - sum(
            max(account.footprint.pss_bytes, account.base_bytes + account.charged_bytes)
            + account.reserved_bytes
            for account in accounts
        )

    def tell(self, reason: str) -> None:
        """Tell the mesh what models may use, when it moved by more than `TELL_BYTES`."""
        now = self.capacity_bytes(), self.unattributed_bytes()
        if any(abs(new - old) >= TELL_BYTES for new, old in zip(now, self._told, strict=True)):
            self._told = now
            self._events.put(CapacityChanged(*now, reason))

    def adopted(self) -> int:
        """The capacity, told to the mesh by the caller."""
        self._told = self.capacity_bytes(), self._told[1]
        return self._told[0]

    def unattributed_bytes(self) -> int:
        """What the workers weigh that is nobody's, free pages they keep for the most part, beyond the allowance."""
        found_bytes = unattributed_bytes(seat.account for seat in self._seats())
        return max(0, found_bytes - int(self._beside_bases_bytes() * ALLOWANCE_SHARE))

    def press(self) -> None:
        """A load is short of room: have the workers give back all free pages now, not with the next reading."""
        self._short.set()

    async def run(self) -> None:
        """Read for ever."""
        try:
            while True:
                started_s = time.monotonic()
                await self._read_all()
                self._short.clear()
                due_s = started_s + max(INTERVAL_S, self._reading_s / READING_SHARE_MAX)
                await asyncio.sleep(min(PRESSED_S, max(0.0, due_s - time.monotonic())))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, due_s - time.monotonic())):
                        await self._short.wait()
        finally:
            for seat in self._seats():
                if seat.measuring is not None:
                    seat.measuring.cancel()

    async def _read_all(self) -> None:
        seats = [seat for seat in self._seats() if seat.worker is not None and seat.worker.alive]
        for seat in seats:
            if seat.measuring is None or seat.measuring.done():
                seat.measuring = asyncio.create_task(self._ask(seat), name=f"{seat.name} measurement")
        waiting = [seat.measuring for seat in seats if seat.measuring is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=ANSWER_WAIT_S)
        workers = [seat.worker for seat in seats]
        pids = [worker.pid for worker in workers if worker is not None]
        started_s = time.monotonic()
        readings = await asyncio.to_thread(lambda: [footprint(pid) for pid in pids])
        self._reading_s = time.monotonic() - started_s
        for seat, worker, reading in zip(seats, workers, readings, strict=True):
            if seat.worker is worker and reading is not None:
                seat.account.measured(reading)
                self._watch_swelling(seat)
        self.tell("the workers were measured")
        self._on_read()

    async def _ask(self, seat: Seat) -> None:
        """Have a worker tidy up and tell; it may take its time."""
        worker = seat.worker
        if worker is None:
            return
        try:
            answer = await worker.ask(Measure(self._slack_max_bytes(seat)), ANSWER_TIMEOUT_S)
        except WorkerDied:
            return
        except TimeoutError:
            log.warning(
                "%s (process %d) has not answered for %.0f s.", seat.name, worker.pid, ANSWER_TIMEOUT_S
            )
            return
        if seat.worker is worker and isinstance(answer, Measured):
            self._settle(seat, answer)

    def _slack_max_bytes(self, seat: Seat) -> int:
        """How many free pages a worker may keep: while models come and go some, for the next load uses them again;
        when it is quiet next to none; none when a load was short of room."""
        quiet = seat.changes == seat.changes_measured
        seat.changes_measured = seat.changes
        if self._short.is_set():
            return 0
        models_bytes = self.capacity_bytes() // max(1, len(self._seats()))
        return MIB if quiet else max(MIB, int(models_bytes * SLACK_SHARE))

    def _settle(self, seat: Seat, measured: Measured) -> None:
        now_s = time.monotonic()
        elapsed_s = now_s - seat.measured_at_s
        seat.busy = min(1.0, max(0.0, measured.busy_s - seat.busy_s) / elapsed_s) if elapsed_s > 0 else 0.0
        seat.busy_s, seat.measured_at_s = measured.busy_s, now_s
        account = seat.account
        if seat.empty and seat.empty_before:
            account.found_empty(measured.anon_bytes)
        seat.empty_before = seat.empty
        mapped_bytes = account.charges.file_bytes
        seat.kept_bytes = measured.anon_bytes - account.base_anon_bytes - account.charged_bytes + mapped_bytes
        if elapsed_s > 0:
            seat.shares = {model: ran_s / elapsed_s for model, ran_s in measured.ran_s.items()}
            seat.readings += 1
        for model, size_bytes in measured.settled.items():
            placed, charge = seat.models.get(model), seat.account.charges.get(model)
            if placed is None or charge is None or self._sizes.measured(placed.content) is not None:
                continue
            size_bytes = max(size_bytes, charge.file_bytes)
            seat.account.charges[model] = Charge(size_bytes, charge.file_bytes)
            self._sizes.settle(
                placed.content,
                Weight(size_bytes, max(size_bytes, placed.peak_bytes), placed.load_s, charge.file_bytes),
            )
            self._events.put(SizeChanged(model, weight_bytes(model, self._seats())))

    def _watch_swelling(self, seat: Seat) -> None:
        limit_bytes = max(SWOLLEN_BYTES_MIN, int(self.share_bytes() * SWOLLEN_SHARE))
        now_s = time.monotonic()
        if seat.kept_bytes < limit_bytes or seat.loading is not None:
            seat.swollen_since_s = None
        elif seat.swollen_since_s is None:
            seat.swollen_since_s = now_s
        elif now_s - seat.swollen_since_s > SWOLLEN_S and not seat.closed:
            seat.swollen_since_s = None
            self._on_swollen(seat)
