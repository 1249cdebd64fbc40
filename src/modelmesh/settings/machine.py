"""What this process may use of the machine: memory and cores, by the control group if there is one, else all of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_UNLIMITED_BYTES = 1 << 60
"""Version 1 control groups write "no limit" as a number near 2^63."""


def memory_limit_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The least limit of the control groups this process is in, or the machine's memory when none is set.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max), cgroup-v1/memory.html."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, unified in _control_groups("memory", proc, cgroups):
        text = _read(folder / ("memory.max" if unified else "memory.limit_in_bytes"))
        if text.isdigit() and 0 < int(text) < _UNLIMITED_BYTES:
            limits.append(int(text))
    return min(limits)


def cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many cores this process may keep busy, at least 1: the affinity mask, and the quota rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    allowed = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    for folder, unified in _control_groups("cpu", proc, cgroups):
        if unified:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            allowed.append(math.ceil(int(quota) / int(period)))
    return max(1, min(allowed))


def _control_groups(controller: str, proc: Path, cgroups: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of the groups this process is in for a controller, with those above it; True: version 2. In a
    container the path may not exist below the mount, then the mount's root is the group."""
    for line in _read(proc / "self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        unified = number == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        root = cgroups if unified else cgroups / controllers
        if not unified and not root.is_dir():
            root = cgroups / controller
        relative = PurePosixPath(path.lstrip("/"))
        for part in (relative, *relative.parents):
            yield root / part, unified


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
