"""Back-off, wanted copies and thrashing."""

from __future__ import annotations

import random

import pytest

from modelmesh.policy.backoff import PERMANENT_S, TRANSIENT_S_MAX, Nature, stands_s
from modelmesh.policy.copies import next_count, wanted
from modelmesh.policy.thrash import WINDOW_S, Thrash


def test_passing_failures_double_up_to_a_bound_and_are_spread() -> None:
    rng = random.Random(1)
    for count in range(1, 40):
        expected_s = min(2.0 ** (count - 1), TRANSIENT_S_MAX)
        assert 0.75 * expected_s <= stands_s(count, Nature.PASSING, rng) <= 1.25 * expected_s
    assert len({stands_s(1, Nature.PASSING, rng) for _ in range(10)}) == 10


def test_bad_artefacts_stand_long_and_a_suggestion_wins() -> None:
    rng = random.Random(1)
    for count in (1, 9):
        assert 0.75 * PERMANENT_S <= stands_s(count, Nature.BAD, rng) <= 1.25 * PERMANENT_S
    assert stands_s(5, Nature.BAD, rng, suggested_s=8.0) <= 10.0


def test_what_is_not_there_is_looked_for_again_soon_and_then_ever_more_rarely() -> None:
    rng = random.Random(1)
    for count in range(1, 40):
        expected_s = min(2.0 ** (count - 1), PERMANENT_S)
        assert 0.75 * expected_s <= stands_s(count, Nature.ABSENT, rng) <= 1.25 * expected_s


@pytest.mark.parametrize(
    ("rate_per_s", "execution_s", "slots", "copies"),
    [(0, 0.1, 4, 1), (10, 0.1, 1, 2), (26, 0.1, 4, 1), (27, 0.1, 4, 2), (1000, 0.1, 4, 8), (1000, 0.1, 0, 1)],
)
def test_wanted_copies_follow_slot_use(
    rate_per_s: float, execution_s: float, slots: int, copies: int
) -> None:
    assert wanted(rate_per_s, execution_s, slots, 1, 8) == copies


def test_copies_grow_at_once_and_shrink_by_one_when_roomy() -> None:
    assert next_count(1, 100.0, 0.1, 4, False, 1, 8) == 4
    assert next_count(2, 1.0, 0.1, 4, True, 1, 8) == 3, "queues at the gates ask for one more"
    assert next_count(4, 1.0, 0.1, 4, False, 1, 8) == 3
    assert next_count(2, 25.0, 0.1, 4, False, 1, 8) == 2, "one could do it, but barely"
    assert next_count(1, 0.0, 0.1, 4, False, 1, 8) == 1


def test_loads_that_undo_evictions_are_thrashing_and_time_heals_it() -> None:
    thrash = Thrash()
    for step in range(20):
        model = f"m{step % 4}"
        thrash.loaded(model, 100, float(step))
        thrash.evicted(model, step + 0.5)
    seen = thrash.judge(20.0)
    assert seen is not None and (seen.loads, seen.returns, seen.lacking_bytes) == (20, 16, 400)
    assert thrash.judge(20.0 + 2 * WINDOW_S) is None


def test_a_working_set_that_moves_on_is_no_thrashing() -> None:
    thrash = Thrash()
    for step in range(200):
        thrash.loaded(f"m{step}", 100, step / 10)
        thrash.evicted(f"m{step - 5}", step / 10)
    assert thrash.judge(20.0) is None
