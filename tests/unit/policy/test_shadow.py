from __future__ import annotations

import random

from modelmesh.policy.eviction import Policy
from modelmesh.policy.rates import Uses
from modelmesh.policy.shadow import ALL_BELOW, Shadow


def feed(shadow: Shadow, sequence: list[str], uses: dict[str, Uses], start_s: float) -> float:
    now_s = start_s
    for model in sequence:
        now_s += 1.0
        known = uses.setdefault(model, Uses())
        known.record(now_s)
        shadow.used(model, 10, 1.0, known, now_s)
    return now_s


def test_lru_takes_over_where_history_misleads_and_gives_back_where_it_helps() -> None:
    rng = random.Random(1)
    shadow, uses = Shadow(rng), dict[str, Uses]()
    shadow.resize(100, 50)
    # Twelve models used ever so often, of which a cache of ten keeps too many for too long once they stop.
    now_s = feed(shadow, [f"old{index % 9}" for index in range(900)], uses, 0.0)
    assert shadow.policy is Policy.RATE_COST
    window = [f"w{step // 3 + offset}" for step in range(1500) for offset in rng.sample(range(8), 1)]
    now_s = feed(shadow, window, uses, now_s)
    took_over = shadow.policy
    loop = [f"z{min(int(rng.paretovariate(0.9)), 60)}" for _ in range(6000)]
    feed(shadow, loop, uses, now_s)
    assert (took_over, shadow.policy) == (Policy.LRU, Policy.RATE_COST)


def test_above_the_bound_one_in_sixteen_is_followed() -> None:
    shadow, uses = Shadow(random.Random(1)), dict[str, Uses]()
    shadow.resize(16_000, ALL_BELOW + 1)
    feed(shadow, [f"m{index}" for index in range(3200)], uses, 0.0)
    assert 100 < shadow.lru_load_s < 300, "about 200 of 3,200 misses are seen"
    shadow.resize(16_000, ALL_BELOW - 1)
    feed(shadow, [f"m{index}" for index in range(50)], uses, 4000.0)
    assert shadow.lru_load_s < 300, "still sampling: the bound has a margin"


def test_too_little_is_no_evidence() -> None:
    shadow, uses = Shadow(random.Random(1)), dict[str, Uses]()
    shadow.resize(10, 5)
    feed(shadow, [f"m{index}" for index in range(40)], uses, 0.0)
    assert shadow.policy is Policy.RATE_COST
