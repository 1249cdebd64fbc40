"""Why a copy may not be evicted. Each reason is also what the views show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from modelmesh.mesh.cache.targets import VMODEL_ACTIVE, VMODEL_TARGET

UNTIL_USED: Final = "ensure loaded"
"""It was asked for, and is there for a use that has not come yet."""
PINNED: Final = "pinned"
MIN_COPIES: Final = "min copies"
"""It is one of those that are always kept loaded."""
_YIELDING: Final = (UNTIL_USED, VMODEL_TARGET, VMODEL_ACTIVE)


def yields(holds: Sequence[str]) -> bool:
    """Whether requests that wait now come before these holds, when nothing else is left to evict."""
    return all(hold in _YIELDING for hold in holds)
