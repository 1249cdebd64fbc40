"""Which instances belong to a revision of the deployment that is on its way out: what is loaded there is soon to be moved.

The newest revision is the one whose first instance started last, so that an old one that is started again does not count as new
(reference mesh.md 9.1). It concerns nobody once the deployment has been at rest for a while: then several revisions are
meant to be there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

MOVING_S: Final = 900.0
"""So long after the last start, stop or drain of an instance a deployment counts as under way."""


class Life(NamedTuple):
    """An instance. Without a revision it is never old."""

    instance: str
    revision: str
    started_wall_ms: int


def old(lives: Iterable[Life], since_change_s: float) -> frozenset[str]:
    """The instances of all revisions but the newest; none when the last change is long ago."""
    if since_change_s > MOVING_S:
        return frozenset()
    told = [life for life in lives if life.revision]
    begun_ms: dict[str, int] = {}
    for life in told:
        begun_ms[life.revision] = min(life.started_wall_ms, begun_ms.get(life.revision, life.started_wall_ms))
    if len(begun_ms) < 2:
        return frozenset()
    newest = max(begun_ms, key=lambda revision: (begun_ms[revision], revision))
    return frozenset(life.instance for life in told if life.revision != newest)
