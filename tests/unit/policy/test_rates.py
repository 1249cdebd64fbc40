from __future__ import annotations

import pytest

from modelmesh.policy.rates import WEIGHT, Uses


def test_never_used_is_a_rate_of_nothing() -> None:
    assert Uses().rate_per_s(5.0) == 0.0


def test_the_first_three_gaps_are_a_plain_mean_then_an_exponential_one() -> None:
    uses = Uses()
    for at_s in (0.0, 1.0, 3.0, 6.0):
        uses.record(at_s)
    assert uses.gap_s == pytest.approx(2.0)
    uses.record(16.0)
    assert uses.gap_s == pytest.approx(2.0 + WEIGHT * 8.0)


def test_idleness_lowers_the_rate_before_the_next_use_does() -> None:
    uses = Uses()
    uses.record(0.0)
    uses.record(2.0)
    assert uses.rate_per_s(3.0) == pytest.approx(0.5)
    assert uses.rate_per_s(12.0) == pytest.approx(0.1)


def test_a_single_use_promises_as_long_a_wait_again() -> None:
    uses = Uses()
    uses.record(10.0)
    assert uses.rate_per_s(14.0) == pytest.approx(1 / 8)


def test_uses_told_at_once_count_like_uses_told_one_by_one() -> None:
    at_once, singly = Uses(), Uses()
    for uses in (at_once, singly):
        uses.record(0.0)
    at_once.record(8.0, 8)
    for at_s in range(1, 9):
        singly.record(float(at_s))
    assert (at_once.count, at_once.last_s) == (singly.count, singly.last_s)
    assert at_once.gap_s == pytest.approx(singly.gap_s)


def test_old_news_moves_no_time_back() -> None:
    uses = Uses()
    uses.record(5.0)
    uses.record(3.0)
    assert uses.last_s == 5.0 and uses.gap_s == 0.0 and uses.rate_per_s(5.0) > 1000
