"""Eviction against brute force, the groups against a plain set, the shadow's caches against naive ones."""

from __future__ import annotations

import random
from collections import OrderedDict
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from modelmesh.policy.eviction import (
    PROBATION_SHARE,
    Policy,
    Resident,
    Residents,
    choose,
    density,
    trim,
)
from modelmesh.policy.rates import Uses
from modelmesh.policy.shadow import LruCache, RateCostCache

SEEDS = st.integers(0, 2**32)


def made(rng: random.Random, model: str) -> Resident:
    uses = Uses()
    for _ in range(rng.randrange(5)):
        uses.record(rng.uniform(0.0, 100.0), rng.randrange(1, 4))
    resident = Resident(model, rng.randrange(1, 10_000), rng.choice((0.0, 0.001, 0.2, 3.0)), uses, 0.0)
    resident.in_flight = rng.choice((0, 0, 1))
    resident.priority, resident.spare = rng.choice((1.0, 1.0, 0.1, 7.0)), rng.random() < 0.2
    return resident


@given(SEEDS, st.integers(1, 60))
def test_the_choice_of_a_whole_group_is_that_of_brute_force(seed: int, n: int) -> None:
    rng = random.Random(seed)
    residents = Residents(rng)
    members = [made(rng, f"m{index}") for index in range(n)]
    for member in members:
        residents.add(member)
    barred = {member.model for member in members if rng.random() < 0.2}
    chosen = choose(residents.sample(Policy.RATE_COST, 120.0), lambda one: one.model not in barred)

    probation = [member for member in members if not member.protected]
    share = sum(member.size_bytes for member in probation) / sum(member.size_bytes for member in members)
    group = probation if share > PROBATION_SHARE else [member for member in members if member.protected]
    allowed = [member for member in group or members if member.model not in barred]
    if not allowed:
        assert chosen is None
        return
    best = min(allowed, key=lambda member: (member.in_flight > 0, density(member, 120.0)))
    assert chosen is not None
    assert (chosen[0].in_flight > 0) is (best.in_flight > 0)
    assert abs(chosen[1] - density(best, 120.0)) <= 1e-9 * abs(chosen[1])
    assert abs(chosen[1] - density(chosen[0], 120.0)) <= 1e-9 * abs(chosen[1])


@given(SEEDS)
def test_groups_and_columns_follow_every_change(seed: int) -> None:
    rng = random.Random(seed)
    residents, inside, outside = (
        Residents(rng),
        list[Resident](),
        [made(rng, f"m{index}") for index in range(30)],
    )
    now_s = 100.0
    for _ in range(200):
        now_s += rng.random()
        verb = rng.random()
        if verb < 0.4 and outside:
            member = outside.pop(rng.randrange(len(outside)))
            residents.add(member)
            inside.append(member)
        elif verb < 0.6 and inside:
            member = inside.pop(rng.randrange(len(inside)))
            residents.discard(member)
            residents.discard(member)
            outside.append(member)
        elif verb < 0.8 and inside:
            member = rng.choice(inside)
            member.uses.record(now_s, rng.randrange(1, 3))
            residents.used(member)
        elif verb < 0.9 and inside:
            member = rng.choice(inside)
            member.priority, member.spare = rng.choice((1.0, 3.0)), rng.random() < 0.5
            residents.refresh(member)
        elif inside:
            residents.resize(rng.choice(inside), rng.randrange(1, 10_000))
        assert len(residents) == len(inside)
        assert residents.size_bytes == sum(member.size_bytes for member in inside)
        assert residents.probation_bytes == sum(
            member.size_bytes for member in inside if not member.protected
        )
        assert all(member.index >= 0 for member in inside) and all(member.index < 0 for member in outside)
        everyone = residents.first(1000, Policy.RATE_COST, now_s).residents
        assert sorted(one.model for one in everyone) == sorted(member.model for member in inside)
        for policy in Policy:
            sample = residents.sample(policy, now_s, 8)
            for value, resident in zip(sample.values, sample.residents, strict=True):
                last_s = resident.uses.last_s if resident.uses.count else -inf
                expected = density(resident, now_s) if policy is Policy.RATE_COST else last_s
                assert value == expected or abs(value - expected) <= 1e-9 * abs(expected)


def test_a_sample_is_uniform() -> None:
    """Every resident is drawn about equally often, whatever order it came in."""
    rng = random.Random(1)
    residents = Residents(rng)
    members = [Resident(str(index), 1, 0.1, Uses(), 0.0) for index in range(40)]
    for member in members:
        residents.add(member)
    drawn = dict.fromkeys((member.model for member in members), 0)
    for _ in range(8_000):
        for resident in residents.sample(Policy.RATE_COST, 1.0, 10).residents:
            drawn[resident.model] += 1
        moved = rng.choice(members)
        residents.discard(moved)
        residents.add(moved)
    assert all(1_700 < count < 2_300 for count in drawn.values()), drawn


@given(SEEDS, st.integers(1, 100_000))
def test_trimmed_victims_suffice_and_none_is_spare(seed: int, needed_bytes: int) -> None:
    rng = random.Random(seed)
    victims = [(member, density(member, 120.0)) for member in (made(rng, str(index)) for index in range(12))]
    kept = trim(victims, needed_bytes)
    total = sum(member.size_bytes for member, _ in victims)
    left = sum(member.size_bytes for member, _ in kept)
    if total >= needed_bytes:
        assert left >= needed_bytes
        assert all(left - member.size_bytes < needed_bytes for member, _ in kept)
    else:
        assert left == total


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 50)), max_size=80), st.integers(1, 120))
def test_the_shadow_lru_is_lru(uses: list[tuple[int, int]], capacity_bytes: int) -> None:
    cache, naive = LruCache(capacity_bytes), OrderedDict[str, int]()
    for number, size_bytes in uses:
        model = f"m{number}"
        assert cache.access(model, size_bytes) is (model in naive)
        naive.pop(model, None)
        naive[model] = size_bytes
        while sum(naive.values()) > capacity_bytes:
            naive.popitem(last=False)
        assert len(cache) == len(naive)


@given(SEEDS, st.integers(1, 120))
def test_the_rate_cost_cache_never_exceeds_its_capacity(seed: int, capacity_bytes: int) -> None:
    rng = random.Random(seed)
    cache, uses = RateCostCache(capacity_bytes, rng), {f"m{index}": Uses() for index in range(10)}
    sizes = {model: rng.randrange(1, 50) for model in uses}
    there: set[str] = set()
    for step in range(100):
        model = rng.choice(sorted(uses))
        uses[model].record(float(step))
        hit = cache.access(model, sizes[model], 0.1, uses[model], float(step))
        assert not hit or model in there
        there.add(model)
        assert cache.size_bytes <= capacity_bytes
