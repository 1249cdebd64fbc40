"""How one setting is read and told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Setting:
    """How a field is read. `default` is written as a user would write it; empty means that it is derived from other
    settings (`sources.read_settings`), or that there is nothing."""

    name: str
    parse: Callable[[str], Any]
    default: str
    says: str
    metavar: str = "N"
    """What stands for the value in a list of flags."""
    several: bool = False
    """Its flag may be repeated; other sources write several values with ";" between them."""
    live: bool = False
    """It may be changed in the store while instances run (`settings.live`)."""
