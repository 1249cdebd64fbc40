"""Rate-cost beats LRU where it should, and is not much worse where it cannot; numbers are shares of LRU's load-seconds."""

from __future__ import annotations

import random

from modelmesh.testing.replay import (
    Cost,
    Use,
    compare,
    drifting,
    equal_costs,
    unequal_costs,
    with_sweep,
    zipf,
)

N, USES = 300, 6000


def share_of(costs: dict[str, Cost], share: float) -> int:
    return int(sum(cost.size_bytes for cost in costs.values()) * share)


def test_unequal_sizes() -> None:
    costs = unequal_costs(N, random.Random(5))
    _, _, ratio = compare(lambda rng: zipf(N, USES, rng), costs, share_of(costs, 0.15), 1)
    assert ratio < 0.9


def test_a_sweep_hurts_less() -> None:
    costs, models = equal_costs(N), [f"m{index}" for index in range(N)]
    _, _, ratio = compare(
        lambda rng: with_sweep(zipf(N, USES, rng), models, 0.5, USES), costs, share_of(costs, 0.15), 1
    )
    assert ratio < 0.9


def test_equal_sizes_and_moving_popularity_are_not_worse() -> None:
    costs = equal_costs(N)
    _, _, ratio = compare(lambda rng: drifting(N, USES, rng), costs, share_of(costs, 0.15), 1)
    assert ratio < 1.02


def test_where_only_recency_helps_the_shadow_limits_the_harm() -> None:
    costs = equal_costs(400, size_bytes=10)

    def window(rng: random.Random) -> list[Use]:
        return [Use(float(step), f"m{(step // 25 + rng.randrange(12)) % 400}") for step in range(8000)]

    mine, _, ratio = compare(window, costs, 120, 1)
    assert ratio < 1.15 and mine.uses == 8000
