from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from modelmesh.policy.keeper import ranked
from modelmesh.policy.placement import Candidate, Placement, Refusal, Wanted, cost_s, place, worth_s
from modelmesh.policy.runtimes import Constraint

WANTED = Wanted("m", size_bytes=100, load_s=1.0, rate_per_s=2.0, execution_s=0.1)
FREE = Candidate("free", capacity_bytes=1000, free_bytes=500)


def chosen(wanted: Wanted, *candidates: Candidate) -> str:
    placement = place(wanted, candidates)
    assert isinstance(placement, Placement), placement
    return placement.instance


def test_free_memory_costs_nothing() -> None:
    full = replace(FREE, instance="full", free_bytes=0, price=1.0)
    assert cost_s(WANTED, FREE) == 0.0
    assert chosen(WANTED, full, FREE) == "free"


def test_the_cost_is_the_sum_of_its_parts() -> None:
    """Worth of what goes for 60 s; waiting behind the queue (3 + 9 instead of 1 + 1, at 2 a second); the wait of a busy instance
    (M/M/1: 0.5 / (1 - 0.5) executions) for 60 s."""
    there = replace(FREE, free_bytes=40, price=0.01, queue_s=2.0, busyness=0.5)
    assert cost_s(WANTED, there) == pytest.approx(0.01 * 60 * 60 + (3 + 9) - (1 + 1) + 1.0 * 2 * 0.1 * 60)
    assert cost_s(WANTED, replace(there, old_revision=True)) == pytest.approx(2 * cost_s(WANTED, there))


def test_the_cheapest_price_queue_and_busyness_win() -> None:
    for better, worse in (
        (replace(FREE, free_bytes=0, price=0.1), replace(FREE, free_bytes=0, price=0.2)),
        (replace(FREE, queue_s=1.0), replace(FREE, queue_s=4.0)),
        (replace(FREE, busyness=0.1), replace(FREE, busyness=0.9)),
    ):
        for names in (("a", "b"), ("b", "a")):
            first, second = replace(better, instance=names[0]), replace(worse, instance=names[1])
            assert chosen(WANTED, first, second) == names[0]


def test_copies_are_spread_over_zones_then_hosts() -> None:
    rows = [
        replace(FREE, instance=id, zone=zone, host=host)
        for id, zone, host in (("a", "z1", "h1"), ("b", "z1", "h2"), ("c", "z2", "h3"), ("d", "z2", "h4"))
    ]
    assert chosen(replace(WANTED, zones=("z1",), hosts=("h1",)), *rows) in ("c", "d")
    assert chosen(replace(WANTED, zones=("z2", "z1"), hosts=("h3", "h1")), *rows) in ("b", "d")
    assert chosen(replace(WANTED, zones=("z2", "z1", "z1"), hosts=("h3", "h1", "h2")), *rows) == "d"
    nowhere = [replace(row, zone="", host="") for row in rows]
    order = ranked("m", {row.instance: 1000.0 for row in rows})
    assert chosen(replace(WANTED, zones=("", ""), hosts=("", "")), *nowhere) == order[0]


def test_a_copy_that_costs_more_than_it_is_worth_is_placed_nowhere() -> None:
    full = replace(FREE, instance="full", free_bytes=0, price=0.01)
    assert cost_s(WANTED, full) == pytest.approx(60.0)
    assert chosen(replace(WANTED, worth_s=60.1), full) == "full"
    assert place(replace(WANTED, worth_s=59.9), [full]) == Refusal(
        "One more copy of m saves less waiting than it costs in every instance that could hold it.", False
    )
    assert chosen(replace(WANTED, worth_s=59.9), full, FREE) == "free"
    large = replace(FREE, capacity_bytes=10)
    assert "holds 10 bytes at most" in str(place(replace(WANTED, worth_s=0.0), [large]))


def test_near_ties_go_by_the_rendezvous_order() -> None:
    order = ranked("m", {"a": 1000.0, "b": 1000.0})
    near = {
        order[0]: replace(FREE, free_bytes=0, price=0.12, instance=order[0]),
        order[1]: replace(FREE, free_bytes=0, price=0.1, instance=order[1]),
    }
    assert chosen(WANTED, *near.values()) == order[0]
    far = replace(near[order[0]], price=0.2)
    assert chosen(WANTED, far, near[order[1]]) == order[1]


def test_among_near_ties_the_newest_revision_comes_first() -> None:
    for names in (("a", "b"), ("b", "a")):
        leaving = replace(FREE, instance=names[0], old_revision=True)
        assert chosen(WANTED, leaving, replace(FREE, instance=names[1])) == names[1]
    assert (
        chosen(WANTED, leaving, replace(FREE, instance="dear", free_bytes=0, price=9.0)) == leaving.instance
    )


def test_ranks_come_before_cost() -> None:
    dear = replace(FREE, instance="dear", free_bytes=0, price=9.0, labels=frozenset({"fast"}), zone="z2")
    cheap = replace(FREE, zone="z1")
    assert chosen(WANTED, dear, cheap) == "free"
    assert (
        chosen(replace(WANTED, constraint=Constraint(preferred=frozenset({"fast"}))), dear, cheap) == "dear"
    )
    assert chosen(replace(WANTED, zones=("z1",)), dear, cheap) == "dear"


def test_who_may_not_is_named_with_the_reason() -> None:
    wanted = replace(WANTED, constraint=Constraint(required=frozenset({"gpu"})))
    refusal = place(
        wanted,
        [
            replace(FREE, instance="a", draining=True),
            replace(FREE, instance="b", capacity_bytes=99),
            replace(FREE, instance="c", failed=True),
            replace(FREE, instance="d"),
        ],
    )
    assert isinstance(refusal, Refusal)
    assert refusal.unsuited
    assert refusal.reason == (
        "No instance can load m of 100 bytes: a is draining; b holds 99 bytes at most; c failed to load it lately; "
        "d lacks the label gpu."
    )
    assert place(WANTED, []) == Refusal("No instance is there to load m.", False)
    gpu = replace(FREE, instance="e", labels=frozenset({"gpu"}))
    assert chosen(wanted, FREE, gpu) == "e"


def test_where_nothing_may_be_evicted_only_free_memory_counts() -> None:
    stuck = replace(FREE, instance="stuck", price=inf)
    assert cost_s(WANTED, stuck) == 0.0
    assert chosen(WANTED, replace(stuck, free_bytes=0), replace(FREE, free_bytes=0, price=9.0)) == "free"
    assert chosen(WANTED, replace(stuck, free_bytes=0)) == "stuck"


def test_a_type_that_no_instance_serves_is_told_from_one_that_finds_no_room() -> None:
    other = replace(FREE, instance="other", serves=False)
    refusal = place(WANTED, [other, replace(FREE, capacity_bytes=9)])
    assert isinstance(refusal, Refusal) and not refusal.unsuited
    refusal = place(WANTED, [other])
    assert isinstance(refusal, Refusal) and refusal.unsuited
    assert refusal.reason.endswith("other does not serve its type.")
    assert chosen(WANTED, other, FREE) == "free"


def test_a_copy_is_worth_what_it_spares() -> None:
    """Two misses a second would each cost one second and, as two more come meanwhile, another one."""
    assert worth_s(WANTED) == pytest.approx(2 * (1 + 1) * 60)
