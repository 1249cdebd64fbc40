"""What the ops port is given by the instance it shows. Everything else it knows through the control plane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import Histogram, RelayStats
from modelmesh.instance.live_settings import LiveSettings
from modelmesh.mesh.control import Admit, ControlPlane
from modelmesh.mesh.measures import Measures
from modelmesh.settings.exporting import NO_EXPORT, Export, InfoMetric


class Relay(Protocol):
    """The part of the data plane that tells about itself."""

    def stats(self) -> RelayStats: ...

    def histograms(self) -> list[Histogram]: ...


class Listening(NamedTuple):
    """Where the instance listens: `grpc` as "host:port", `rest` and `ops` as URLs. Empty: not at all. `others` are the URLs of
    HTTP ports beside the ops port, by name."""

    grpc: str
    rest: str
    ops: str
    others: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Parts:
    """`drain` returns when what was in flight is done. `ended` only waits for that: False when it did not come within twice the
    grace period. `oldest_use_wall_s` is when the least recently used resident was used, 0 when nothing is loaded."""

    control: ControlPlane
    relay: Relay
    live: LiveSettings
    measures: Measures
    admit: Admit
    drain: Callable[[], Awaitable[None]]
    ended: Callable[[], Awaitable[bool]]
    listening: Callable[[], Listening]
    oldest_use_wall_s: Callable[[], float]
    clock: Clock
    folder: str
    budget_bytes: int
    export: Export = NO_EXPORT
    info_metric: InfoMetric | None = None
    log_scrapes: bool = False
