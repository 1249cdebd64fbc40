"""Which copies stay when fewer are needed."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from modelmesh.policy.copies import Holder, kept
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
