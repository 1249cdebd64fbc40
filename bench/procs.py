"""Processes under measurement: starting them pinned, stopping them surely, reading their accounts from /proc.

Linux only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

SERVER_CORE = 0
LOAD_CORE = 1 if (os.cpu_count() or 1) > 1 else 0


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command, bound to one core with all it starts."""
    return ["taskset", "-c", str(core), *command]


def pin_tree(pid: int, core: int) -> None:
    """Bind a running process with all its threads to one core (its children stay where they are)."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {core})


def tree(pid: int) -> list[int]:
    """The process and its living descendants, the process first. Empty when it is gone."""
    found = [pid] if Path(f"/proc/{pid}").exists() else []
    for parent in found:
        for task in _listed(Path(f"/proc/{parent}/task")):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in (task / "children").read_text().split())
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def cpu_s(pid: int) -> float:
    """User and system time of one process, all its threads, to the nanosecond; 0 when it is gone.

    The clock's number is made as in clock_getcpuclockid(3).
    """
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def tree_cpu_s(pid: int) -> float:
    return sum(cpu_s(each) for each in tree(pid))


def rss_bytes(pid: int) -> int:
    """Resident bytes; 0 when the process is gone."""
    return _field_bytes(Path(f"/proc/{pid}/status"), "VmRSS:")


def pss_bytes(pid: int) -> int:
    """Proportional set size: resident bytes, shared ones divided among their sharers; 0 when the process is gone."""
    return _field_bytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _field_bytes(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


def listening_unix_sockets(pid: int) -> list[str]:
    """Paths of the unix sockets a process listens on."""
    paths = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) == 8 and int(fields[3], 16) & 0x10000:  # __SO_ACCEPTCON
            paths[f"socket:[{fields[6]}]"] = fields[7]
    held = []
    for descriptor in _listed(Path(f"/proc/{pid}/fd")):
        with contextlib.suppress(OSError):
            held.append(str(descriptor.readlink()))
    return [paths[link] for link in held if link in paths]


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    stop_s: float = 30,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block, its output in `log`.

    It is stopped by SIGTERM, after `stop_s` by SIGKILL to its group.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, **environment} if environment else None,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def wait_until(
    ready: Callable[[], bool],
    what: str,
    *,
    process: subprocess.Popen[bytes],
    log: Path,
    timeout_s: float = 60,
) -> None:
    """Wait for a condition of a started process. RuntimeError with the end of its log when it exits or the time is up."""
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        exited = process.poll()
        if exited is not None or time.monotonic() > deadline_s:
            how = f"exited with {exited}" if exited is not None else f"was not there within {timeout_s:.0f} s"
            tail = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{what} {how}. The end of its log:\n{tail}")
        time.sleep(0.01)


def free_ports(count: int) -> list[int]:
    """Ports nobody holds now. (Between here and their use someone may take one: then the server says so.)"""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end_by_exception() -> None:
    """Let SIGTERM end this program as Ctrl-C does, so that the servers it runs are stopped and not left behind."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def installed(program: str, package: str) -> str | None:
    """None when the program is there, else the sentence that says how to get it."""
    if shutil.which(program):
        return None
    return f"{program} is not installed: apt-get install {package}"
