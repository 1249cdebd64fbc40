"""Which worker a model is loaded into. Pure: numbers in, an index out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

BUSY_SHARE: Final = 0.25
"""A worker that is busy all the time counts as if it held this much more of its share of the budget."""


SPREAD_SHARE: Final = 0.1


class Candidate(NamedTuple):
    """A worker as the choice sees it. `new_base_bytes` is what importing the format would add to it."""

    charged_bytes: int
    new_base_bytes: int
    busy: float
    """Share of the last second spent in models, 0 to 1."""
    loading: bool
    n_models: int


def choose(candidates: Sequence[Candidate], share_bytes: int, capacity_bytes: int) -> int | None:
    """The index of the best worker; None when there is none.

    Idle ones before loading ones; then by bytes, those a new import would cost included: a format spreads to a second
    worker when the first holds that much more, or is that much busier; never when that would take `SPREAD_SHARE` of what
    models may use (`capacity_bytes`) more than the cheapest import does."""

    least_bytes = min((worker.new_base_bytes for worker in candidates), default=0)

    def cost(index: int) -> tuple[bool, bool, float, int, int]:
        worker = candidates[index]
        too_dear = worker.new_base_bytes - least_bytes > SPREAD_SHARE * capacity_bytes
        held_bytes = worker.charged_bytes + worker.new_base_bytes + worker.busy * BUSY_SHARE * share_bytes
        must_wait = worker.loading and worker.new_base_bytes == 0
        return too_dear, must_wait, held_bytes, worker.n_models, index

    return min(range(len(candidates)), key=cost, default=None)
