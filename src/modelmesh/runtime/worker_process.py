"""One worker process as its supervisor holds it: start, ask, watch, end. It decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelmesh.errors import RuntimeUnavailable, SettingsError
from modelmesh.runtime.control_channel import ControlChannel, WorkerDied
from modelmesh.runtime.deaths import Death
from modelmesh.worker.control import Done, Message, Refused, Serve, Stop

log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 60.0
KILL_TIMEOUT_S: Final = 10.0
SOCKET_PATH_BYTES_MAX: Final = 103
"""What a unix socket's path may have on all systems (108 on Linux, 104 on macOS, less a terminator)."""

ENVIRONMENT: Final[Mapping[str, str]] = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "PYTHONMALLOC": "malloc",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",
}
"""Dense and countable: few heaps, no threads of libraries beside the worker's own, and Python's objects in the same
heap as everything else, so that the allocator's count is a model's size and its pages can be given back
(3–5 % of inference time, measured; without it Python keeps a megabyte for each survivor)."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How workers are started; the same for all of one runtime."""

    socket_dir: Path
    """A private folder with a short path; the caller makes and removes it."""
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment and the worker's own settings."""
    batch_rows_max: int = 256
    batch_bytes_max: int = 4 * 1024 * 1024
    message_bytes_max: int = 16 * 1024 * 1024
    stuck_after_s: float = 60.0
    """How long a batch may run; then its worker is replaced."""


class WorkerProcess:
    """A started worker. Owned by one event loop."""

    def __init__(self, name: str, config: WorkerConfig) -> None:
        self.name = name
        self.socket_path = config.socket_dir / f"{name}.sock"
        self.executing_path = config.socket_dir / f"{name}.run"
        self.ending = ""
        """Why it is being ended on purpose; empty while it is meant to live."""
        self.stuck = ""
        """The model it is ended for, which did not answer."""
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.buried: asyncio.Future[Death] = loop.create_future()
        """Set by the supervisor once it knows what the death means."""
        self._config = config
        self._channel = ControlChannel(name, self._end_of_channel)
        self._process: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and not self.exited.done() and not self.ending

    async def start(self) -> None:
        """Start it and wait until it accepts. Raises RuntimeUnavailable, SettingsError; then no process is left."""
        if len(os.fsencode(self.socket_path)) > SOCKET_PATH_BYTES_MAX:
            raise SettingsError(
                f"The path {self.socket_path} is too long for a socket "
                f"({SOCKET_PATH_BYTES_MAX} bytes at most): give a shorter folder for sockets."
            )
        ours, theirs = socket.socketpair()
        try:
            self._process = self._spawn(theirs)
        except OSError as error:
            ours.close()
            raise RuntimeUnavailable(
                f"A worker cannot be started with {self._config.python}: {error}."
            ) from error
        finally:
            theirs.close()
        try:
            await self._introduce(ours)
        except BaseException:
            await self.kill("it did not start")
            raise

    async def _introduce(self, ours: socket.socket) -> None:
        """Open the channel and tell the worker where to listen. Raises RuntimeUnavailable."""
        self._watch_exit()
        await self._channel.open(ours)
        serve = Serve(
            socket_path=str(self.socket_path),
            executing_path=str(self.executing_path),
            parent_pid=os.getpid(),
            batch_rows_max=self._config.batch_rows_max,
            batch_bytes_max=self._config.batch_bytes_max,
            message_bytes_max=self._config.message_bytes_max,
            stuck_after_s=self._config.stuck_after_s,
        )
        try:
            answer = await self.ask(serve, START_TIMEOUT_S)
        except (WorkerDied, TimeoutError) as error:
            raise RuntimeUnavailable(
                f"{self.name} ended or hung before it was ready ({type(error).__name__}); its messages are above."
            ) from error
        if isinstance(answer, Refused):
            raise RuntimeUnavailable(answer.reason)

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        """A new session, so that Ctrl-C reaches only us; never a fork of this process, whose threads it would lack."""
        return subprocess.Popen(
            [self._config.python, "-P", "-m", "modelmesh.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT, **self._config.environment},
        )

    def _watch_exit(self) -> None:
        """Set `exited` at once when the process ends: by its pidfd, or by a waiting thread where there is none."""
        loop, process = asyncio.get_running_loop(), self._process
        assert process is not None
        try:
            descriptor = os.pidfd_open(process.pid)
        except (AttributeError, OSError):
            self._tasks.append(asyncio.create_task(self._wait_in_thread(), name=f"{self.name} exit"))
            return

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._note_exit(process.wait())

        loop.add_reader(descriptor, ended)

    async def _wait_in_thread(self) -> None:
        assert self._process is not None
        self._note_exit(await asyncio.to_thread(self._process.wait))

    def _note_exit(self, return_code: int) -> None:
        if not self.exited.done():
            self.exited.set_result(return_code)
        self._channel.fail()

    def _end_of_channel(self) -> None:
        """A worker without its channel is of no use any more."""
        if self._process is not None and not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL if self.ending else signal.SIGTERM)

    async def ask(self, command: Message, timeout_s: float) -> Message:
        """Send a command and wait for its answer. Raises WorkerDied, TimeoutError (then the answer is still discarded
        when it comes)."""
        if self.exited.done():
            raise WorkerDied(self.name)
        return await self._channel.ask(command, timeout_s)

    async def wait_buried(self) -> Death | None:
        """What its death meant, once it is known; None when that takes too long, for it does not end."""
        try:
            async with asyncio.timeout(KILL_TIMEOUT_S):
                return await asyncio.shield(self.buried)
        except TimeoutError:
            return None

    async def stop(self, grace_s: float, why: str) -> None:
        """Let it finish what runs, then end it. Returns when it is gone."""
        self.ending = self.ending or why
        with contextlib.suppress(WorkerDied, TimeoutError):
            answer = await self.ask(Stop(grace_s), grace_s + 1.0)
            if isinstance(answer, Done):
                async with asyncio.timeout(1.0):
                    await asyncio.shield(self.exited)
        await self.kill(why)

    async def kill(self, why: str) -> None:
        """End it now. Returns when it is gone; nothing of it is left but the folder."""
        self.ending = self.ending or why
        if self._process is not None and not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            try:
                async with asyncio.timeout(KILL_TIMEOUT_S):
                    await asyncio.shield(self.exited)
            except TimeoutError:
                log.error(
                    "%s (process %d) does not end though it was killed; is a disk hanging?",
                    self.name,
                    self.pid,
                )
        await self.close()

    async def close(self) -> None:
        """Release what a dead process leaves: tasks, channel, files. Idempotent."""
        for path in (self.socket_path, self.executing_path):
            path.unlink(missing_ok=True)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._channel.fail()
        await self._channel.close()
