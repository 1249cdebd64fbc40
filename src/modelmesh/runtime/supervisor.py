"""The workers: started, watched, started again, replaced; and what their deaths mean for the models they held."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from modelmesh.clock import LoopClock
from modelmesh.dataplane.executing import executing_models, executions
from modelmesh.dataplane.protocol import Target
from modelmesh.errors import ModelMeshError, RuntimeUnavailable
from modelmesh.journal import Did
from modelmesh.runtime.deaths import Death, oom_kills
from modelmesh.runtime.events import Events
from modelmesh.runtime.facts import Facts
from modelmesh.runtime.ids import Ids
from modelmesh.runtime.protocol import CopyLost, Noted, TargetsChanged
from modelmesh.runtime.quarantine import Quarantine
from modelmesh.runtime.seat import Seat, whereabouts
from modelmesh.runtime.stuck import CHECK_S, StuckBatches
from modelmesh.runtime.worker_process import WorkerConfig, WorkerProcess
from modelmesh.worker.memory import footprint

log = logging.getLogger(__name__)

RESTART_S_MIN: Final = 0.5
RESTART_S_MAX: Final = 30.0
STEADY_S: Final = 60.0
"""A worker that lived this long is restarted at once; else each further start waits twice as long."""
TARGET_CONCURRENCY: Final = 1024
UNREACHED_S: Final = 3.0
"""How long a worker may be out of the data plane's reach: it dials anew at once and gives up after two seconds. Then its
process is stopped or stuck, for the thread that accepts does nothing else."""


class Supervisor:
    """All seats of the runtime. `on_change` is called when bases came or went, `on_blamed` for a model that a
    worker died of: the mesh is told that it is lost, wherever else it is; `on_again` for a seat that has a worker again."""

    def __init__(
        self,
        config: WorkerConfig,
        facts: Facts,
        quarantine: Quarantine,
        events: Events,
        on_change: Callable[[str], None],
        on_blamed: Callable[[str], None],
        on_again: Callable[[Seat], None],
        ids: Ids,
    ) -> None:
        self.seats: list[Seat] = []
        self.someone_ready = asyncio.Condition()
        self._config = config
        self._facts = facts
        self._quarantine = quarantine
        self._events = events
        self._on_change = on_change
        self._on_blamed = on_blamed
        self._on_again = on_again
        self._clock = LoopClock()
        self._ids = ids
        self._names = itertools.count(0)
        self._oom_kills = oom_kills()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self, n_workers: int) -> None:
        """Start the regular seats. Raises RuntimeUnavailable or SettingsError; then none is left running."""
        self.seats = [Seat(f"worker-{next(self._names)}") for _ in range(n_workers)]
        started = await asyncio.gather(
            *(self._seat_worker(seat) for seat in self.seats), return_exceptions=True
        )
        failures = [failure for failure in started if isinstance(failure, BaseException)]
        if failures:
            await self.stop(0.0)
            raise failures[0]

    async def add_seat(self, *, alone_for: str = "") -> Seat:
        """Start one more worker: for a model that must run alone, or to take a seat's place. Raises RuntimeUnavailable."""
        seat = Seat(f"worker-{next(self._names)}", alone_for=alone_for)
        self.seats.append(seat)
        try:
            await self._seat_worker(seat)
        except BaseException:
            self.seats.remove(seat)
            raise
        self._on_change(f"{seat.name} was started")
        return seat

    async def end_seat(self, seat: Seat, grace_s: float, why: str) -> None:
        """End a worker for good; its models are lost."""
        seat.closed = True
        worker = seat.worker
        if worker is not None:
            await worker.stop(grace_s, why)
            await worker.wait_buried()
        if seat in self.seats:
            self.seats.remove(seat)
        self._on_change(f"{seat.name} was ended: {why}")

    def target_reached(self, target_id: int, reached: bool) -> None:
        """The data plane lost a target, or has it again. A worker that stays lost though its process lives is replaced."""
        seat = next((seat for seat in self.seats if seat.target_id == target_id), None)
        if seat is None or seat.worker is None or seat.reached == reached:
            return
        seat.reached = reached
        if not reached:
            self.spawn(self._end_unreached(seat, seat.worker), f"{seat.name} patience")

    async def _end_unreached(self, seat: Seat, worker: WorkerProcess) -> None:
        await asyncio.sleep(UNREACHED_S)
        if seat.worker is worker and worker.alive and not seat.reached:
            await self.end_worker(seat, "it did not answer any more and was killed")

    async def watch_batches(self) -> None:
        """Look for batches that do not end, for ever. Their models are struck, their workers replaced."""
        stuck = StuckBatches(self._config.stuck_after_s)
        while True:
            await asyncio.sleep(CHECK_S)
            running = [
                (seat.target_id, execution)
                for seat in self.seats
                if seat.worker is not None and seat.worker.alive
                for execution in executions(seat.worker.executing_path)
            ]
            for target_id, execution in stuck.overdue(running, self._clock.monotonic_s()):
                await self._end_stuck(target_id, execution.model)

    async def _end_stuck(self, target_id: int, model: str) -> None:
        seat = next((seat for seat in self.seats if seat.target_id == target_id), None)
        if seat is None or seat.worker is None or not seat.worker.alive:
            return
        seat.worker.stuck = model
        await self.end_worker(seat, f"{model} did not answer within {self._config.stuck_after_s:g} s")

    async def end_worker(self, seat: Seat, why: str) -> None:
        """Kill the process of a seat; another takes its place, its models are lost."""
        worker = seat.worker
        if worker is not None:
            await worker.kill(why)
            await worker.wait_buried()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something beside the callers; it is cancelled by `stop`, and its errors are logged."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def stop(self, grace_s: float) -> None:
        """End all workers and forget them. Idempotent."""
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        workers = [seat.worker for seat in self.seats if seat.worker is not None]
        await asyncio.gather(*(worker.stop(grace_s, "the server stops") for worker in workers))
        self.seats.clear()

    async def _seat_worker(self, seat: Seat) -> None:
        target_id = self._ids.target()
        worker = WorkerProcess(f"{seat.name}-{target_id}", self._config)
        await worker.start()
        try:
            reading = await asyncio.to_thread(footprint, worker.pid)
        except asyncio.CancelledError:
            await worker.kill("it was not needed any more")
            raise
        if reading is not None:
            seat.account.found_idle(reading)
            self._facts.learn_idle_base(reading.pss_bytes)
        seat.worker, seat.target_id = worker, target_id
        seat.started_at_s = self._clock.monotonic_s()
        target = Target(seat.target_id, f"unix:{worker.socket_path}", max_concurrency=TARGET_CONCURRENCY)
        self._events.put(TargetsChanged(add=(target,), remove=()))
        alone = f" for {seat.alone_for} alone" if seat.alone_for else ""
        self._events.put(Noted(Did.WORKER_STARTED, "", f"{seat.name} runs as process {worker.pid}{alone}."))
        worker.exited.add_done_callback(lambda _: self._died(seat, worker))
        async with self.someone_ready:
            self.someone_ready.notify_all()

    def _died(self, seat: Seat, worker: WorkerProcess) -> None:
        """Say what is lost, blame who is to blame, then bury and start again. Called as soon as the process has ended."""
        suspects = (worker.stuck,) if worker.stuck else tuple(executing_models(worker.executing_path))
        if seat.loading is not None and not worker.stuck:
            suspects = tuple(dict.fromkeys((*suspects, seat.loading.id)))
        counted, self._oom_kills = self._oom_kills, oom_kills()
        out_of_memory = self._oom_kills > counted
        death = Death(
            worker.exited.result(), out_of_memory, worker.ending, suspects, stuck=bool(worker.stuck)
        )
        target_id, alone = seat.target_id, bool(seat.alone_for)
        lost = seat.vacate(self._facts.idle_base_bytes())
        if not self._stopping:
            self._report(seat.name, target_id, death, lost)
            self._blame(death, alone)
            self._on_change(f"{seat.name} ended")
        worker.buried.set_result(death)
        if self._stopping:
            return
        self.spawn(self._succeed(seat, worker), f"{seat.name} successor")

    def _report(self, name: str, target_id: int, death: Death, lost: list[str]) -> None:
        self._events.put(TargetsChanged(add=(), remove=(target_id,)))
        for model in lost:
            blamed = death.blames_models and model in death.suspects
            left = None if blamed else whereabouts(model, self.seats)
            self._events.put(left or CopyLost(model, f"its worker ended: {death.reason}"))
        ran = f" while it ran or loaded {', '.join(death.suspects)}" if death.suspects else ""
        self._events.put(
            Noted(
                Did.WORKER_DIED,
                "",
                f"{name} ended{ran}: {death.reason}; {len(lost)} models were there.",
            )
        )

    def _blame(self, death: Death, alone: bool) -> None:
        if death.blames_models:
            for model in death.suspects:
                self.strike(model, death.reason, alone=alone)
                self._on_blamed(model)

    def strike(self, model: str, reason: str, *, alone: bool) -> None:
        """A worker died, or has to, because of a model."""
        if self._quarantine.strike(model, reason, self._clock.monotonic_s(), alone=alone):
            self._events.put(
                Noted(
                    Did.QUARANTINED,
                    model,
                    f"It killed a worker that was its own ({reason}) and is kept away for a while.",
                )
            )
        else:
            self._events.put(
                Noted(
                    Did.STRUCK,
                    model,
                    f"Its worker died under it ({reason}); from now on it runs in a worker of its own.",
                )
            )

    async def _succeed(self, seat: Seat, worker: WorkerProcess) -> None:
        """Clean up after a process and seat the next one, unless nobody needs it."""
        lived_s = self._clock.monotonic_s() - seat.started_at_s
        await worker.close()
        if seat.closed or seat.alone_for:
            if seat in self.seats:
                self.seats.remove(seat)
                self._on_change(f"{seat.name} was ended")
            return
        seat.failed_starts = 0 if lived_s > STEADY_S else seat.failed_starts + 1
        while not self._stopping:
            if seat.failed_starts > 1:
                await asyncio.sleep(min(RESTART_S_MIN * 2 ** (seat.failed_starts - 2), RESTART_S_MAX))
            try:
                await self._seat_worker(seat)
            except ModelMeshError as error:
                seat.failed_starts += 1
                log.warning("%s cannot be started again: %s", seat.name, error)
                continue
            self._on_change(f"{seat.name} was started again")
            self._on_again(seat)
            return

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until a regular seat is ready. Raises RuntimeUnavailable after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self.someone_ready:
                await self.someone_ready.wait_for(
                    lambda: any(seat.ready and not seat.alone_for for seat in self.seats) or self._stopping
                )
        except TimeoutError as error:
            raise RuntimeUnavailable(
                f"No worker became ready in {timeout_s:.0f} s; they are being restarted."
            ) from error
        if self._stopping:
            raise RuntimeUnavailable("The server stops.")
