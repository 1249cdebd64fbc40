"""When a canary takes over, goes on, or is given up."""

from __future__ import annotations

import random
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmesh.policy.canary import EARLY_LEVEL, EARLY_REQUESTS, LEVEL, Seen, Terms, Verdict, chance_of, judge

TERMS = Terms(600.0, 50)


def exact(errors: int, requests: int, errors_there: int, requests_there: int) -> float:
    """The same sum by integers."""
    all_errors, all_requests = errors + errors_there, requests + requests_there
    ways = sum(
        comb(all_errors, k) * comb(all_requests - all_errors, requests - k)
        for k in range(errors, min(all_errors, requests) + 1)
    )
    return ways / comb(all_requests, requests)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_the_chance_is_that_of_the_hypergeometric_tail(a: int, b: int, c: int, d: int) -> None:
    errors, requests, errors_there, requests_there = min(a, b), max(a, b), min(c, d), max(c, d)
    chance = chance_of(errors, requests, errors_there, requests_there)
    if errors * (requests + requests_there) > (errors + errors_there) * requests:
        assert chance == pytest.approx(exact(errors, requests, errors_there, requests_there), rel=1e-9)
    else:
        assert chance == 1.0


def test_the_chance_is_quick_and_sound_for_many_requests() -> None:
    assert 0.0 < chance_of(60_000, 1_000_000, 900_000, 20_000_000) < 1e-100
    assert chance_of(1_000, 1_000_000, 20_000, 20_000_000) == 1.0
    assert 0.1 < chance_of(1_020, 1_000_000, 20_000, 20_000_000) < 0.4


@pytest.mark.parametrize(
    ("active", "target", "elapsed_s", "verdict"),
    [
        (Seen(1000, 0), Seen(50, 0), 599.0, Verdict.GO_ON),
        (Seen(1000, 0), Seen(50, 0), 600.0, Verdict.PROMOTE),
        (Seen(1000, 0), Seen(49, 0), 600.0, Verdict.GO_ON),
        (Seen(1000, 0), Seen(49, 0), 1800.0, Verdict.PROMOTE),
        (Seen(0, 0), Seen(0, 0), 1799.0, Verdict.GO_ON),
        (Seen(0, 0), Seen(0, 0), 1800.0, Verdict.PROMOTE),
        (Seen(1000, 100), Seen(100, 10), 600.0, Verdict.PROMOTE),
        (Seen(1000, 100), Seen(100, 14), 600.0, Verdict.PROMOTE),
        (Seen(1000, 100), Seen(100, 30), 600.0, Verdict.ROLL_BACK),
        (Seen(1000, 100), Seen(100, 0), 600.0, Verdict.PROMOTE),
        (Seen(1000, 0), Seen(9, 9), 3.0, Verdict.GO_ON),
        (Seen(1000, 0), Seen(10, 10), 3.0, Verdict.ROLL_BACK),
        (Seen(1000, 0), Seen(10, 2), 3.0, Verdict.ROLL_BACK),
        (Seen(1000, 0), Seen(10, 1), 3.0, Verdict.GO_ON),
        (Seen(0, 0), Seen(50, 50), 1.0, Verdict.ROLL_BACK),
        (Seen(0, 0), Seen(50, 3), 1.0, Verdict.GO_ON),
        (Seen(10, 10), Seen(50, 50), 600.0, Verdict.ROLL_BACK),
        (Seen(100, 100), Seen(50, 50), 600.0, Verdict.PROMOTE),
    ],
)
def test_verdicts(active: Seen, target: Seen, elapsed_s: float, verdict: Verdict) -> None:
    assert judge(active, target, elapsed_s, TERMS).verdict is verdict


def test_the_reason_gives_the_numbers() -> None:
    rolled = judge(Seen(4600, 46), Seen(240, 12), 60.0, TERMS)
    assert rolled.verdict is Verdict.ROLL_BACK
    assert "12 of 240 requests failed (5 %); of the active model 46 of 4,600" in rolled.reason
    assert "Chance explains that once in" in rolled.reason
    sure = judge(Seen(100_000, 0), Seen(2_000, 2_000), 60.0, TERMS)
    assert sure.reason.endswith("Chance explains that less than once in a billion times.")
    going = judge(Seen(4600, 3), Seen(20, 0), 60.0, TERMS)
    assert "540 s are left, 30 requests are lacking" in going.reason
    few = judge(Seen(4600, 3), Seen(20, 0), 1800.0, TERMS)
    assert "They are few, 50 were wanted" in few.reason


def test_without_a_time_the_requests_decide() -> None:
    terms = Terms(0.0, 50)
    assert judge(Seen(1000, 0), Seen(49, 0), 1e6, terms).verdict is Verdict.GO_ON
    assert judge(Seen(1000, 0), Seen(50, 0), 0.1, terms).verdict is Verdict.PROMOTE


@pytest.mark.parametrize(
    ("slower_max", "active_s", "target_s", "verdict"),
    [
        (0.0, 1.0, 100.0, Verdict.PROMOTE),
        (1.5, 10.0, 1.4, Verdict.PROMOTE),
        (1.5, 10.0, 1.6, Verdict.ROLL_BACK),
        (1.5, 0.0, 1.6, Verdict.PROMOTE),
    ],
)
def test_latency_counts_where_it_is_asked_for(
    slower_max: float, active_s: float, target_s: float, verdict: Verdict
) -> None:
    """The active model served 1,000 requests in `active_s`, the canary 100 in `target_s`."""
    terms = Terms(600.0, 50, slower_max)
    judgement = judge(Seen(1000, 0, active_s), Seen(100, 0, target_s), 600.0, terms)
    assert judgement.verdict is verdict
    if verdict is Verdict.ROLL_BACK:
        assert "16 ms, 1.60 times as long" in judgement.reason


def test_equals_are_seldom_given_up_though_one_looks_each_second() -> None:
    """Both fail 3 % of the time; 20 requests a second, of which the canary gets a tenth, for five minutes."""
    rng = random.Random(1)
    terms, given_up = Terms(300.0, 50), 0
    for _ in range(300):
        active, target = Seen(), Seen()
        for second in range(1, 301):
            for _ in range(20):
                seen = Seen(1, int(rng.random() < 0.03))
                if rng.random() < 0.1:
                    target += seen
                else:
                    active += seen
            verdict = judge(active, target, float(second), terms).verdict
            if verdict is not Verdict.GO_ON:
                given_up += verdict is Verdict.ROLL_BACK
                break
    assert given_up <= 0.03 * 300


def test_a_bad_one_is_given_up_soon() -> None:
    """It fails every third request; the active model one of 100."""
    rng = random.Random(1)
    for _ in range(50):
        active, target = Seen(), Seen()
        while judge(active, target, 1.0, TERMS).verdict is Verdict.GO_ON:
            active += Seen(19, sum(rng.random() < 0.01 for _ in range(19)))
            target += Seen(1, int(rng.random() < 1 / 3))
        assert EARLY_REQUESTS <= target.requests <= 60


def test_looking_often_asks_for_more_certainty() -> None:
    assert EARLY_LEVEL < LEVEL
