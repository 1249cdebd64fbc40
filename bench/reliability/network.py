"""Machines for one run: network namespaces of their own, joined by a router that can lose what they send each other.

The program runs itself again inside fresh user, network, mount and process namespaces. So it needs no root where the kernel lets
users have them, the machine's own network is not touched, and when it ends, however that happens, nothing of it is left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

_INSIDE = "MODELMESH_BENCH_INSIDE"
_UNSHARE = (
    *("unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc"),
    "--kill-child",
)


def missing() -> str:
    """Why there can be no such machines here; empty when there can."""
    if absent := [program for program in ("ip", "unshare") if not shutil.which(program)]:
        return f"{' and '.join(absent)} is not installed (Debian: iproute2, util-linux)"
    tried = subprocess.run([*_UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    return f"the kernel gives no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def enter(module: str, arguments: Sequence[str]) -> None:
    """Go on inside: returns there, at once; outside the process becomes the one that waits for it."""
    if _INSIDE not in os.environ:
        os.environ[_INSIDE] = "1"
        os.execvp(_UNSHARE[0], [*_UNSHARE, sys.executable, "-m", module, *arguments])


@dataclass(frozen=True, slots=True)
class Machine:
    """`prefix` goes before the command of what is to run on it."""

    name: str
    host: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)


class Network:
    """This process is the router, and reaches all machines whatever is cut between them."""

    def __init__(self) -> None:
        _run("mount", "-t", "tmpfs", "machines", "/run")  # where `ip netns` keeps its names
        _run("ip", "link", "set", "lo", "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._n_machines = 0
        self._cut: list[tuple[Machine, Machine]] = []

    def machine(self, name: str) -> Machine:
        """Make one. At most 250, with different names."""
        self._n_machines += 1
        net, device = f"10.77.{self._n_machines}", f"v{self._n_machines}"
        machine = Machine(name, f"{net}.2")
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "addr", "add", f"{net}.1/30", "dev", device)
        _run("ip", "link", "set", device, "up")
        for what in (f"addr add {machine.host}/30 dev eth0", "link set eth0 up", "link set lo up"):
            _run("ip", "-n", name, *what.split())
        _run("ip", "-n", name, "route", "add", "default", "via", f"{net}.1")
        return machine

    def cut(self, some: Iterable[Machine], others: Iterable[Machine]) -> None:
        """Lose, without a word, what any of the one sends to any of the others, both ways."""
        for one, other in product(some, others):
            for pair in ((one, other), (other, one)):
                _run("ip", "rule", "add", *_between(pair), "blackhole")
                self._cut.append(pair)

    def heal(self) -> None:
        """Carry everything again."""
        while self._cut:
            _run("ip", "rule", "del", *_between(self._cut.pop()), "blackhole")


def _between(pair: tuple[Machine, Machine]) -> tuple[str, ...]:
    return ("from", pair[0].host, "to", pair[1].host)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
