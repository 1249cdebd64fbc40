"""Rate-cost beats LRU where it should, and is not much worse where it cannot; numbers are shares of LRU's load-seconds."""

from __future__ import annotations

import random

from modelmesh.testing.replay import (
    Cost,
    Use,
    compare,
    drifting,
    equal_costs,
    replay_rate_cost,
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


def test_where_only_recency_helps_the_shadow_takes_over() -> None:
    """A window of models slides on and never returns: what was used often is worth nothing."""
    costs = equal_costs(2000, size_bytes=10)

    def window(rng: random.Random) -> list[Use]:
        old = [Use(float(step), f"m{step % 9}") for step in range(900)]
        return old + [Use(900.0 + step, f"m{100 + step // 3 + rng.randrange(8)}") for step in range(5000)]

    mine, lru, ratio = compare(window, costs, 100, 1)
    alone = replay_rate_cost(window(random.Random(1)), costs, 100, random.Random(2), shadow=False)
    assert ratio < 1.05 and mine.lru_share > 0.7
    assert alone.load_s > 1.2 * lru.load_s
