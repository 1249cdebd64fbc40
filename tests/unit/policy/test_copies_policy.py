"""How many copies there should be, and which of them stay when fewer are needed."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmesh.policy.copies import Holder, SlotUse, grown, kept, shrinks, spared_s, waiting
from modelmesh.policy.keeper import ranked

HOLDERS = st.lists(
    st.builds(
        Holder, st.sampled_from("abcdefgh"), st.sampled_from(["", "z1", "z2", "z3"]), st.sampled_from(["", "h1", "h2", "h3"])
    ),
    unique_by=lambda holder: holder.instance,
    max_size=7,
)  # fmt: skip


def zones(holders: list[Holder]) -> int:
    """How many zones there are, each unknown one for itself."""
    return len({holder.zone or holder.instance for holder in holders})


@given(HOLDERS, st.integers(0, 8))
def test_who_stays(holders: list[Holder], n: int) -> None:
    stay = kept("m", holders, n)
    assert len(stay) == len(set(stay)) == min(n, len(holders))
    by_id = {holder.instance: holder for holder in holders}
    assert set(stay) <= by_id.keys()
    assert kept("m", holders[::-1], n) == stay, "the order in which they are known does not matter"
    assert stay[: max(n - 1, 0)] == kept("m", holders, max(n - 1, 0))[: max(n - 1, 0)], (
        "fewer are some of them"
    )
    best = max((zones(list(some)) for some in combinations(holders, len(stay))), default=0)
    assert zones([by_id[id] for id in stay]) == best, "no choice has more zones"


@given(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1))
def test_where_nothing_is_known_of_places_the_nearest_stay(ids: list[str]) -> None:
    assert kept("m", [Holder(id) for id in ids], len(ids)) == ranked("m", dict.fromkeys(ids, 1.0))


def test_after_zones_come_hosts() -> None:
    holders = [Holder("a", "z", "h1"), Holder("b", "z", "h1"), Holder("c", "z", "h2")]
    for model in ("m1", "m2", "m3", "m4", "m5"):
        assert "c" in kept(model, holders, 2)


def use(
    share: float = 0.0, mean: float | None = None, queued: int = 0, wait_s: float = 0.0, slots: int = 1
) -> SlotUse:
    return SlotUse(slots, share, share if mean is None else mean, queued, wait_s)


@pytest.mark.parametrize(
    ("copies", "seen", "lasting", "maximum", "there_should_be"),
    [
        (1, use(0.64), False, 9, 1),
        (1, use(0.66), False, 9, 2),
        (1, use(1.0), False, 9, 2),
        (2, use(1.0), False, 9, 4),
        (2, use(1.0), False, 3, 3),
        (3, use(0.7), False, 9, 4),
        (4, use(0.7, slots=8), False, 9, 5),
        (2, use(5.0), False, 9, 4),
        (1, use(1.0, mean=0.1, queued=9), False, 9, 1),
        (1, use(1.0, mean=0.1, queued=9), True, 9, 2),
        (1, use(1.0, mean=0.1, queued=1), True, 9, 1),
        (1, use(0.3, mean=0.1, queued=9), True, 9, 1),
        (1, use(0.3, mean=0.1, queued=9, wait_s=0.06), True, 9, 2),
        (4, use(0.3, mean=0.1, queued=9, wait_s=0.06), True, 9, 5),
        (3, use(1.0, queued=9, slots=0), True, 9, 3),
        (5, use(1.0, queued=9), True, 2, 5),
    ],
)
def test_how_many_copies_there_should_be(
    copies: int, seen: SlotUse, lasting: bool, maximum: int, there_should_be: int
) -> None:
    assert grown(copies, seen, lasting=lasting, maximum=maximum) == there_should_be


@pytest.mark.parametrize(
    ("copies", "seen", "rest", "fewer_do"),
    [
        (1, use(0.0), [], False),
        (2, use(0.0), [0.0], True),
        (2, use(0.25), [0.25], True),
        (2, use(0.27), [0.1], False),
        (2, use(0.1), [0.45], False),
        (4, use(0.38), [0.1, 0.1, 0.1], True),
        (4, use(0.38), [0.1, 0.5, 0.1], False),
        (4, use(0.1, queued=1), [0.1, 0.1, 0.1], False),
    ],
)
def test_when_one_copy_fewer_will_do(copies: int, seen: SlotUse, rest: list[float], fewer_do: bool) -> None:
    assert shrinks(copies, seen, rest) is fewer_do


@given(st.integers(1, 12), st.floats(0.0, 1.0), st.integers(1, 8))
def test_what_was_just_made_is_not_given_up_for_the_same_use(copies: int, share: float, slots: int) -> None:
    """Hysteresis: with the same demand spread over the copies that were made, none of them is one too many."""
    more = grown(copies, use(share, slots=slots), lasting=False, maximum=100)
    if more > copies:
        assert not shrinks(more, use(share * copies / more, slots=slots), [0.0] * (more - 1))


def test_who_waits_is_seen_or_expected() -> None:
    assert waiting(use(0.5, queued=7)) == 7
    assert waiting(use(0.5)) == pytest.approx(0.5)
    assert waiting(use(0.5, slots=4)) == pytest.approx(2.0)
    assert waiting(use(9.0)) == pytest.approx(0.95**2 / 0.05)


def test_a_second_copy_spares_what_a_loss_once_a_day_would_cost() -> None:
    per_day = 86_400.0 / 60.0
    assert spared_s(1.0, 2.0) == pytest.approx((2.0 + 1.0 * 2.0**2 / 2.0) / per_day)
    assert spared_s(10.0, 2.0) > spared_s(1.0, 2.0)
    assert spared_s(1.0 / 4_000.0, 60.0) == 0.0
