"""Why a worker process died, and whether the model it ran is to blame."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BLAMED_SIGNALS: Final = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
)


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended. `suspects` are the models it executed or loaded at that moment."""

    return_code: int
    """As `subprocess` tells it: negative for a signal."""
    out_of_memory: bool
    """The kernel killed for lack of memory meanwhile."""
    on_purpose: str
    """Why the supervisor itself ended it; else empty."""
    suspects: tuple[str, ...]
    stuck: bool = False
    """The supervisor ended it because the suspect did not answer."""

    @property
    def blames_models(self) -> bool:
        """Whether it is a strike: a crash, an exit of its own, the kernel's out-of-memory killer, no answer. A kill from outside
        is not."""
        if self.stuck:
            return True
        if self.on_purpose:
            return False
        if self.return_code == -signal.SIGKILL:
            return self.out_of_memory
        return self.return_code >= 0 or -self.return_code in BLAMED_SIGNALS

    @property
    def reason(self) -> str:
        """The cause in half a sentence."""
        if self.on_purpose:
            return self.on_purpose
        if self.return_code >= 0:
            return f"it ended itself with exit status {self.return_code}"
        name = signal.Signals(-self.return_code).name
        if self.return_code == -signal.SIGKILL and self.out_of_memory:
            return "the kernel killed it for lack of memory"
        return f"it was ended by {name}"


def oom_kills() -> int:
    """How often the kernel killed for lack of memory in our control group, or on this machine where there is none.

    Source: Linux `Documentation/admin-guide/cgroup-v2.rst` memory.events, `cgroup-v1/memory.rst` oom_control."""
    for path in _oom_counters():
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0


def _oom_counters() -> list[Path]:
    paths: list[Path] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                paths.append(Path(f"/sys/fs/cgroup{group}/memory.events"))
            elif "memory" in controllers.split(","):
                paths.append(Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control"))
    inside_container = [
        Path("/sys/fs/cgroup/memory.events"),
        Path("/sys/fs/cgroup/memory/memory.oom_control"),
    ]
    return [*paths, *inside_container, Path("/proc/vmstat")]
