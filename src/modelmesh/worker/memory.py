"""What a process weighs, and giving memory back: the one place that knows glibc, /proc and their substitutes.

Linux with glibc is exact: the allocator's own count for models, the kernel's proportional set size (PSS) for
processes. Elsewhere both fall back to the resident size, which is coarser but never absent.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LINUX = sys.platform == "linux"


class Footprint(NamedTuple):
    """Memory of a process in bytes: `anon_bytes` is its own, `file_bytes` its share of mapped files and shared memory."""

    anon_bytes: int
    file_bytes: int

    @property
    def pss_bytes(self) -> int:
        return self.anon_bytes + self.file_bytes


def footprint(pid: int) -> Footprint | None:
    """The footprint of a process of this user; None when it is gone or may not be read.

    Source: Linux `Documentation/filesystems/proc.rst`, smaps_rollup. Off Linux `ps` tells the resident size, all of
    it counted as the process's own."""
    if not LINUX:
        return _footprint_by_ps(pid)
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    if "Pss" not in fields:
        return None
    pss_bytes = _kib(fields["Pss"])
    anon_bytes = (
        _kib(fields["Pss_Anon"]) if "Pss_Anon" in fields else min(pss_bytes, _kib(fields["Anonymous"]))
    )
    return Footprint(anon_bytes, pss_bytes - anon_bytes)


def _kib(field: str) -> int:
    return int(field.split()[0]) * 1024


def _footprint_by_ps(pid: int) -> Footprint | None:
    try:
        answer = subprocess.run(
            ["/bin/ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Footprint(int(answer.stdout) * 1024, 0) if answer.stdout.strip().isdigit() else None


class _Mallinfo2(ctypes.Structure):
    """Source: mallinfo(3), glibc ≥ 2.33; summed over all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


@functools.cache
def _libc() -> ctypes.PyDLL | None:
    """The C library when it counts its allocations (glibc ≥ 2.33), else None. Called without letting go of the interpreter,
    so that little else happens between two readings of one thread."""
    if not LINUX:
        return None
    try:
        libc = ctypes.PyDLL(None)
        libc.mallinfo2.restype = _Mallinfo2
        libc.mallinfo2.argtypes = ()
        libc.malloc_trim.argtypes = (ctypes.c_size_t,)
    except (OSError, AttributeError):
        return None
    return libc


def heap_bytes() -> int:
    """What the allocator of this process has handed out; the resident size where it does not count."""
    libc = _libc()
    if libc is None:
        return resident().anon_bytes
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def trim() -> None:
    """Give free pages of the heap back to the system. Costs milliseconds per hundred megabytes of heap."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def reset_peak() -> None:
    """Start a new measurement of `peak_bytes`; where that is not possible the peak covers the process's life.

    Source: proc_pid_clear_refs(5), value 5."""
    if LINUX:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


class Resident(NamedTuple):
    """Resident memory of this process by the kernel's cheap counters; `peak_bytes` since `reset_peak`."""

    anon_bytes: int
    file_bytes: int
    peak_bytes: int

    @property
    def all_bytes(self) -> int:
        return self.anon_bytes + self.file_bytes


def resident() -> Resident:
    """The counters of the moment. Off Linux only a peak over the whole life is known, told as all three would be."""
    if LINUX:
        with contextlib.suppress(OSError, KeyError, ValueError):
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            shared_bytes = _kib(fields["RssFile"]) + _kib(fields["RssShmem"])
            return Resident(_kib(fields["RssAnon"]), shared_bytes, _kib(fields["VmHWM"]))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return Resident(peak_bytes, 0, peak_bytes)


def mapped_bytes(folder: Path) -> int:
    """What of the files below a folder is mapped into this process and resident; 0 where the system does not tell.

    Source: proc_pid_smaps(5). Reads a line per mapping, so it is not for every load."""
    if not LINUX:
        return 0
    total, inside = 0, False
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if " " in name:
                inside = f" {folder}/" in line
            elif inside and name == "Rss":
                total += _kib(value)
    return total


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, where it can; the control channel's end does it elsewhere.

    Source: prctl(2), PR_SET_PDEATHSIG."""
    if LINUX:
        with contextlib.suppress(OSError, AttributeError):
            pr_set_pdeathsig, sigkill = 1, 9
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, sigkill, 0, 0, 0)
