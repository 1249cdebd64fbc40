"""The order of loads against a plain sort, and who may start against the rules spelled out."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from modelmesh.mesh.cache.budget import Budget
from modelmesh.mesh.cache.copies import Copy, Want
from modelmesh.mesh.cache.histories import History
from modelmesh.mesh.cache.queue import LoadQueue
from modelmesh.mesh.views import State
from modelmesh.policy.urgency import AGEING_S, Claim, Why, order, ready_in_s, startable
from modelmesh.registry.records import ModelRecord

PATIENCE_S = 10.0


def place(copy: Copy, now_s: float) -> tuple[int, float]:
    """The rule anew: asked too long is urgent; waiting per load second, doubled every AGEING_S of waiting."""
    want = copy.want
    assert want is not None
    why = want.why
    if why is Why.ASKED and now_s - want.since_s >= PATIENCE_S:
        why = Why.URGENT
    saved = max(want.waiting, 1) / max(copy.load_s, 1e-3) * 2.0 ** ((now_s - want.since_s) / AGEING_S)
    return why, -saved


@given(st.integers(0, 2**32))
def test_the_queue_is_a_sorted_list(seed: int) -> None:
    rng = random.Random(seed)
    budget = Budget("fake", rng)
    queue, members, now_s = LoadQueue(PATIENCE_S), list[Copy](), 0.0
    for step in range(80):
        now_s += rng.choice((0.0, 0.1, 3.0))
        verb = rng.random()
        if verb < 0.5 or not members:
            want = Want(now_s, waiting=rng.choice((0, 1, 5)), asked=rng.random() < 0.5)
            record = ModelRecord("fake", load_ms=rng.choice((0, 10, 2000)))
            members.append(Copy(f"m{step}", record, History(), now_s, want, budget))
            queue.push(members[-1], now_s)
        elif verb < 0.75:
            copy = rng.choice(members)
            assert copy.want is not None
            copy.want.waiting = rng.choice((0, 2, 40))
            queue.push(copy, now_s)
        else:
            copy = members.pop(rng.randrange(len(members)))
            queue.discard(copy)
            copy.state = State.LOADING
        queue.age(now_s)
        expected = sorted(place(copy, now_s) for copy in members)
        found = [place(copy, now_s) for copy in queue.ordered()]
        assert len(queue) == len(members) == len(found)
        for (why, value), (found_why, found_value) in zip(expected, found, strict=True):
            assert why == found_why and abs(value - found_value) <= 1e-6 * abs(value)
        first = queue.ordered()
        plain = [copy for copy in first if copy.want and not copy.want.gentle]
        gentle = [copy for copy in first if copy.want and copy.want.gentle]
        assert queue.first(5, 2) == [copy for copy in first if copy in plain[:5] or copy in gentle[:2]]


@given(st.lists(st.integers(0, 40), max_size=10), st.integers(0, 4), st.integers(0, 100), st.integers(0, 60))
def test_who_starts_never_delays_who_came_before(
    needs: list[int], slots: int, free: int, incoming: int
) -> None:
    started, lacking = startable([Claim(need) for need in needs], slots, free, incoming)
    assert started == sorted(set(started)) and len(started) <= slots
    taken = sum(needs[index] for index in started)
    assert taken <= free, "only what is free is given away"
    for index in started:
        blocked = [needs[other] for other in range(index) if other not in started]
        passed = sum(needs[other] for other in started if other <= index)
        if blocked:
            assert sum(blocked) <= free + incoming - passed, "the blocked ones before it still fit"
    blocked_all = [index for index in range(len(needs)) if index not in started]
    if blocked_all and slots > len(started):
        head = needs[blocked_all[0]]
        left = free - sum(needs[index] for index in started if index < blocked_all[0])
        assert head > left, "with a slot free, only memory holds the head back"
        assert lacking >= head - (free - taken) - incoming, "room is made for the head"
    if not blocked_all:
        assert lacking == 0


@given(
    st.lists(st.floats(0.0, 10.0), max_size=12), st.integers(1, 4), st.lists(st.floats(0.0, 5.0), max_size=4)
)
def test_readiness_is_that_of_serving_in_order(loads: list[float], slots: int, running: list[float]) -> None:
    free_at = [*sorted(running)[:slots], *[0.0] * max(slots - len(running), 0)]
    expected = []
    for load_s in loads:
        soonest = min(range(len(free_at)), key=free_at.__getitem__)
        free_at[soonest] += load_s
        expected.append(free_at[soonest])
    assert ready_in_s(loads, slots, running) == expected


def test_ageing_beats_any_advantage() -> None:
    old = order(Why.URGENT, waiting=1, load_s=10.0, since_s=0.0)
    late = order(Why.URGENT, waiting=100, load_s=0.001, since_s=45.0)
    assert old < late < order(Why.URGENT, waiting=1, load_s=10.0, since_s=41.0)
