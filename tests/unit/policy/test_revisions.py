"""Which instances are soon to go."""

from __future__ import annotations

from modelmesh.policy.revisions import MOVING_S, Life, old

FIRST = [Life("a", "r1", 100), Life("b", "r1", 110)]
SECOND = [Life("c", "r2", 200), Life("d", "", 90)]


def test_all_but_those_of_the_newest_revision() -> None:
    assert old([*FIRST, *SECOND], 0.0) == {"a", "b"}
    assert old([*SECOND, *FIRST], MOVING_S) == {"a", "b"}


def test_an_old_instance_that_is_started_again_makes_its_revision_no_newer() -> None:
    assert old([FIRST[0], Life("b", "r1", 300), *SECOND], 0.0) == {"a", "b"}


def test_none_when_there_is_one_revision_or_all_is_at_rest() -> None:
    assert old([], 0.0) == frozenset()
    assert old([*FIRST, Life("d", "", 500)], 0.0) == frozenset()
    assert old([*FIRST, *SECOND], MOVING_S + 1) == frozenset()
