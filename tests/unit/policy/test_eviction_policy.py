from __future__ import annotations

import random

import pytest

from modelmesh.policy.eviction import Policy, Resident, Residents, choose, density, miss_cost_s, residence_s
from modelmesh.policy.rates import Uses


def resident(model: str, *uses_s: float, size_bytes: int = 100, load_s: float = 1.0) -> Resident:
    uses = Uses()
    for at_s in uses_s:
        uses.record(at_s)
    return Resident(model, size_bytes, load_s, uses, 0.0)


def victim(*residents: Resident, now_s: float = 10.0, policy: Policy = Policy.RATE_COST) -> str:
    group = Residents(random.Random(1))
    for one in residents:
        group.add(one)
    chosen = choose(group.sample(policy, now_s))
    assert chosen is not None
    return chosen[0].model


def test_a_miss_costs_the_load_and_those_who_arrive_meanwhile() -> None:
    assert miss_cost_s(2.0, 0.0) == 2.0
    assert miss_cost_s(2.0, 3.0) == 2.0 + 3.0 * 4.0 / 2


def test_the_value_is_per_byte() -> None:
    small, large = resident("s", 0.0, 5.0), resident("l", 0.0, 5.0, size_bytes=400)
    assert density(small, 10.0) == pytest.approx(4 * density(large, 10.0))
    assert victim(small, large) == "l"


def test_the_cheap_to_reload_goes_before_the_dear_though_used_later() -> None:
    cheap, dear = resident("cheap", 4.0, 9.0, load_s=0.01), resident("dear", 0.0, 5.0, load_s=9.0)
    assert victim(cheap, dear) == "cheap"
    assert victim(cheap, dear, policy=Policy.LRU) == "dear"


def test_a_sweep_churns_only_the_probation() -> None:
    group = Residents(random.Random(1))
    known = [resident(f"known{index}", 1.0, 2.0) for index in range(20)]
    for one in known:
        group.add(one)
    for index in range(100):
        now_s = 100.0 + index
        group.add(resident(f"once{index}", now_s, load_s=50.0))
        if len(group) > 25:
            chosen = choose(group.sample(Policy.RATE_COST, now_s))
            assert chosen is not None and chosen[0].model.startswith("once")
            group.discard(chosen[0])
    assert all(one.index >= 0 for one in known)


def test_the_second_use_ends_probation_also_of_one_that_is_held() -> None:
    group = Residents(random.Random(1))
    one = resident("m", 1.0)
    group.add(one)
    assert not one.protected and group.probation_bytes == 100
    group.discard(one)
    one.uses.record(2.0)
    group.used(one)
    assert one.protected and one.index < 0
    group.add(one)
    assert group.probation_bytes == 0 and group.size_bytes == 100


def test_residence_is_a_few_loads_and_never_long() -> None:
    assert residence_s(0.1) == pytest.approx(0.3)
    assert residence_s(60.0) == 5.0


def test_nothing_to_evict_is_none() -> None:
    assert choose(Residents(random.Random(1)).sample(Policy.RATE_COST, 0.0)) is None
