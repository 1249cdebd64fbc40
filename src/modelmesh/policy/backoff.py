"""How long a failure stands before the next request may try again."""

from __future__ import annotations

import random
from enum import Enum, auto
from typing import Final

PERMANENT_S: Final = 450.0
"""The predecessor's expiry of a failed load: a bad artefact is looked at again after this."""
TRANSIENT_S: Final = 1.0
TRANSIENT_S_MAX: Final = 120.0
JITTER: Final = 0.25
LOOKS_PER_S: Final = 10.0
"""So often, in all, an instance looks again for what was away: a storage that is gone is not asked by all its models at once."""
TOOK_FACTOR: Final = 2.0
"""A look that took long keeps the next one waiting for twice as long, so that at most half a load slot is spent on looking."""


class Nature(Enum):
    """What a failure tells of the next try."""

    AWAY = auto()
    """Nothing was there, or it did not answer: storage, a model server. Looking again costs little."""
    PASSING = auto()
    """Time, memory, what nobody foresaw: it may be over soon."""
    BAD = auto()
    """The artefact itself: it stands until that is replaced."""


def stands_s(
    count: int,
    nature: Nature,
    rng: random.Random,
    suggested_s: float | None = None,
    *,
    permanent_s: float = PERMANENT_S,
) -> float:
    """Seconds the `count`-th failure in a row stands: that of a bad artefact `permanent_s`; one that may pass doubles each time,
    but for what was away, which stands a second (see `look_s`). Spread by 25 % either way, so that many do not return at once.
    `suggested_s`, from the one who failed, wins. `permanent_s` is also the longest of the doubled ones."""
    if suggested_s is not None:
        base_s = suggested_s
    elif nature is Nature.BAD:
        base_s = permanent_s
    else:
        doublings = 0 if nature is Nature.AWAY else min(count - 1, 30)
        base_s = min(TRANSIENT_S * 2.0**doublings, TRANSIENT_S_MAX, permanent_s)
    return base_s * (1.0 + JITTER * (2.0 * rng.random() - 1.0))


def look_s(last_s: float, now_s: float, took_s: float) -> float:
    """When it is the turn of one more that was away to be looked for again, after the one whose turn is at `last_s` (or was), and
    now a look took `took_s`. Not later than after `TRANSIENT_S_MAX`, however many they are."""
    step_s = max(1.0 / LOOKS_PER_S, TOOK_FACTOR * took_s)
    return min(max(last_s, now_s) + step_s, now_s + TRANSIENT_S_MAX)
