"""What the ops port is given by the instance it shows. Everything else it knows through the control plane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import Histogram, RelayStats
from modelmesh.mesh.control import Admit, ControlPlane
from modelmesh.mesh.measures import Measures


class Relay(Protocol):
    """The part of the data plane that tells about itself."""

    def stats(self) -> RelayStats: ...

    def histograms(self) -> list[Histogram]: ...


class Listening(NamedTuple):
    """Where the instance listens: `grpc` as "host:port", `rest` and `ops` as URLs. Empty: not at all."""

    grpc: str
    rest: str
    ops: str


@dataclass(frozen=True, slots=True)
class Parts:
    """`drain` returns when what was in flight is done. `oldest_use_wall_s` is when the least recently used resident was used,
    0 when nothing is loaded."""

    control: ControlPlane
    relay: Relay
    measures: Measures
    admit: Admit
    drain: Callable[[], Awaitable[None]]
    listening: Callable[[], Listening]
    oldest_use_wall_s: Callable[[], float]
    clock: Clock
    folder: str
    budget_bytes: int
