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


class Nature(Enum):
    """What a failure tells of the next try."""

    PASSING = auto()
    """Storage, time, memory: it may be over soon."""
    ABSENT = auto()
    """Nothing was there. Looking again costs little, and storage that was away comes back; if not, nobody brought the model."""
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
    """Seconds the `count`-th failure in a row stands: that of a bad artefact `permanent_s`, others double each time, so that
    storage which was away is missed for as long as it was. Spread by 25 % either way, so that many do not return at once.
    `suggested_s`, from the one who failed, wins. `permanent_s` is also the longest of the doubled ones."""
    doubled_s = TRANSIENT_S * 2.0 ** min(count - 1, 30)
    if suggested_s is not None:
        base_s = suggested_s
    elif nature is Nature.BAD:
        base_s = permanent_s
    elif nature is Nature.ABSENT:
        base_s = min(doubled_s, permanent_s)
    else:
        base_s = min(doubled_s, TRANSIENT_S_MAX, permanent_s)
    return base_s * (1.0 + JITTER * (2.0 * rng.random() - 1.0))
