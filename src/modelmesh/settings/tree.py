"""The tree of settings: frozen values by concern. Each field says its unit, what nothing means, and why this default.

A setting has one name. `grpc_port` is the flag `--grpc-port`, the environment variable `MODELMESH_GRPC_PORT` and the
key `grpc_port` of the TOML file. `docs/settings.md` lists them all; a test compares it with this tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelmesh.settings.models import Memory, Models, Runtimes
from modelmesh.settings.network import Edges, Network
from modelmesh.settings.operation import Lifecycle, Logs, Metrics
from modelmesh.settings.peering import Peering
from modelmesh.settings.setting import Setting
from modelmesh.settings.sharing import State


@dataclass(frozen=True, slots=True)
class Settings:
    """All of them. Made by `sources.read_settings`, once, at the start; passed down, never read again."""

    models: Models
    runtimes: Runtimes
    memory: Memory
    network: Network
    edges: Edges
    state: State
    peering: Peering
    lifecycle: Lifecycle
    logs: Logs
    metrics: Metrics


__all__: Sequence[str] = (
    "Edges",
    "Lifecycle",
    "Logs",
    "Memory",
    "Metrics",
    "Models",
    "Network",
    "Peering",
    "Runtimes",
    "Setting",
    "Settings",
    "State",
)
