"""Back-off, wanted copies and thrashing."""

from __future__ import annotations

import random

import pytest

from modelmesh.policy.backoff import LOOKS_PER_S, PERMANENT_S, TRANSIENT_S_MAX, Nature, look_s, stands_s
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


def test_what_was_away_is_looked_for_each_second_but_all_together_at_a_bounded_rate() -> None:
    rng = random.Random(1)
    assert all(0.75 <= stands_s(count, Nature.AWAY, rng) <= 1.25 for count in range(1, 40))
    assert look_s(0.0, 50.0, took_s=0.0) == 50.0 + 1 / LOOKS_PER_S
    turn_s = 0.0
    for _ in range(1_000):
        turn_s = look_s(turn_s, 0.0, took_s=0.0)
    assert turn_s == pytest.approx(1_000 / LOOKS_PER_S)
    assert look_s(turn_s, 0.0, took_s=30.0) == TRANSIENT_S_MAX, "none has to wait for longer"


def test_looks_that_take_long_take_turns_that_leave_half_a_slot_free() -> None:
    assert look_s(0.0, 10.0, took_s=3.0) == 16.0
    assert look_s(16.0, 10.0, took_s=3.0) == 22.0


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
