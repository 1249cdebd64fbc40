"""How long a failure stands before the next request may try again."""

from __future__ import annotations

import random
from typing import Final

PERMANENT_S: Final = 450.0
"""The predecessor's expiry of a failed load: a bad artefact is looked at again after this."""
TRANSIENT_S: Final = 1.0
TRANSIENT_S_MAX: Final = 120.0
JITTER: Final = 0.25


def stands_s(
    count: int,
    permanent: bool,
    rng: random.Random,
    suggested_s: float | None = None,
    *,
    permanent_s: float = PERMANENT_S,
) -> float:
    """Seconds the `count`-th failure in a row stands. Permanent ones (a bad artefact) do not grow; transient ones
    (storage, time, memory) double each time. Spread by 25 % either way, so that many do not return at once.
    `suggested_s`, from the one who failed, wins. `permanent_s` is also the
    longest of the doubled ones."""
    if suggested_s is not None:
        base_s = suggested_s
    elif permanent:
        base_s = permanent_s
    else:
        base_s = min(TRANSIENT_S * 2.0 ** min(count - 1, 30), TRANSIENT_S_MAX, permanent_s)
    return base_s * (1.0 + JITTER * (2.0 * rng.random() - 1.0))
