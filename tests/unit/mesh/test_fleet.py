"""What is known of other instances: by news alone."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace

import pytest

from modelmesh.errors import Code
from modelmesh.mesh.fleet import Fleet
from modelmesh.peers.protocol import (
    Back,
    Failed,
    Gone,
    Held,
    Joined,
    Load,
    Member,
    Provided,
    Silent,
    Told,
    Update,
)

LOAD = Load(1000, 500, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet("me")
    for id in ("a", "b"):
        fleet.apply(Joined(Member(id, 1, f"{id}:1")), 0.0)
    return fleet


def tell(
    fleet: Fleet, id: str, sequence: int, *held: Held, epoch: int = 1, begins: bool = False
) -> list[str]:
    return fleet.apply(Told(id, Update(epoch, sequence, begins, True, held)), 0.0)


def holders(fleet: Fleet, model: str = "iris") -> list[str]:
    return [peer.id for peer in fleet.holders(model)]


def test_this_instance_is_none_of_the_others() -> None:
    fleet = Fleet("me")
    fleet.apply(Joined(Member("me", 1, "me:1")), 0.0)
    assert len(fleet) == 0


def test_a_copy_counts_from_loaded_until_it_is_given_up(fleet: Fleet) -> None:
    assert tell(fleet, "a", 1, Held("iris", False, True)) == ["iris"]
    assert holders(fleet) == []
    assert [peer.id for peer in fleet.loading("iris")] == ["a"]
    tell(fleet, "a", 2, Held("iris", True))
    assert holders(fleet) == ["a"]
    assert tell(fleet, "a", 3, Held("iris", False)) == ["iris"]
    assert holders(fleet) == []


def test_a_denied_copy_is_believed_again_only_by_newer_word(fleet: Fleet) -> None:
    tell(fleet, "a", 5, Held("iris", True))
    fleet.deny("a", "iris")
    assert holders(fleet) == []
    fleet.provided("iris", Provided("a", 1, 5))
    assert holders(fleet) == []
    tell(fleet, "a", 5, Held("iris", True))
    assert holders(fleet) == []
    fleet.provided("iris", Provided("a", 1, 6))
    assert holders(fleet) == ["a"]


def test_a_denial_ends_when_the_holder_itself_says_that_it_has_it_no_more(fleet: Fleet) -> None:
    tell(fleet, "a", 5, Held("iris", True))
    fleet.deny("a", "iris")
    tell(fleet, "a", 6, Held("iris", False))
    peer = fleet.get("a")
    assert peer is not None
    assert "iris" not in peer.denied
    assert holders(fleet) == []


def test_a_denial_ends_when_the_holder_tells_anew_what_it_holds(fleet: Fleet) -> None:
    tell(fleet, "a", 5, Held("iris", True), Held("rose", True))
    fleet.deny("a", "iris")
    peer = fleet.get("a")
    assert peer is not None
    tell(fleet, "a", 5, Held("iris", True), begins=True)
    assert holders(fleet) == [] and "iris" in peer.denied
    tell(fleet, "a", 6, Held("rose", True), begins=True)
    assert "iris" not in peer.denied


def test_what_was_provided_does_not_undo_newer_word(fleet: Fleet) -> None:
    fleet.apply(Told("a", Update(1, 9, held=(Held("iris", True),))), 0.0)
    fleet.apply(Told("a", Update(1, 10, held=(Held("iris", False),))), 0.0)
    fleet.provided("iris", Provided("a", 1, 9))
    assert not fleet.holders("iris")
    fleet.provided("iris", Provided("a", 1, 11))
    assert [peer.id for peer in fleet.holders("iris")] == ["a"]


def test_what_was_provided_is_not_undone_by_older_word(fleet: Fleet) -> None:
    fleet.provided("iris", Provided("a", 1, 7))
    tell(fleet, "a", 6, Held("iris", False, True))
    assert holders(fleet) == ["a"]
    tell(fleet, "a", 8, Held("iris", False))
    assert holders(fleet) == []


def test_a_former_life_says_nothing_of_the_present_one(fleet: Fleet) -> None:
    tell(fleet, "a", 9, Held("iris", True))
    assert fleet.apply(Joined(Member("a", 2, "a:2")), 0.0) == ["iris"]
    assert holders(fleet) == []
    tell(fleet, "a", 10, Held("iris", True), epoch=1)
    fleet.provided("iris", Provided("a", 1, 11))
    assert holders(fleet) == []
    tell(fleet, "a", 1, Held("iris", True), epoch=2)
    assert holders(fleet) == ["a"]
    fleet.apply(Joined(Member("a", 1, "a:1")), 0.0)
    assert holders(fleet) == ["a"]


def test_a_snapshot_replaces_all_that_was_known(fleet: Fleet) -> None:
    tell(fleet, "a", 1, Held("iris", True), Held("rose", True))
    assert set(tell(fleet, "a", 4, Held("lily", True), begins=True)) == {"iris", "rose", "lily"}
    assert (holders(fleet, "iris"), holders(fleet, "lily")) == ([], ["a"])


def test_a_silent_holder_is_asked_only_when_there_is_no_other(fleet: Fleet) -> None:
    tell(fleet, "a", 1, Held("iris", True))
    tell(fleet, "b", 1, Held("iris", True))
    assert fleet.apply(Silent("a"), 1.0) == ["iris"]
    assert holders(fleet) == ["b"]
    tell(fleet, "b", 2, Held("iris", False))
    assert holders(fleet) == ["a"]
    fleet.apply(Back("a"), 2.0)
    tell(fleet, "b", 3, Held("iris", True))
    assert holders(fleet) == ["a", "b"]


def test_who_suspects_most_others_suspects_itself(fleet: Fleet) -> None:
    for id in ("a", "b"):
        tell(fleet, id, 1, Held("iris", True))
        fleet.apply(Silent(id), 1.0)
    assert fleet.doubts_itself
    assert holders(fleet) == ["a", "b"]


def test_nothing_of_an_instance_that_is_gone_counts(fleet: Fleet) -> None:
    tell(fleet, "a", 1, Held("iris", True))
    assert fleet.apply(Gone("a"), 1.0) == ["iris"]
    assert holders(fleet) == []
    assert tell(fleet, "a", 2, Held("iris", True)) == []


def test_failures_stand_until_they_expire_or_are_called_off(fleet: Fleet) -> None:
    failed = Failed("iris", Code.UNAVAILABLE, "Away.", False, 2000)
    fleet.apply(Told("a", Update(1, 1, failed=(failed,))), 10.0)
    fleet.apply(Told("b", Update(1, 1, failed=(failed._replace(message="Full."),))), 11.0)
    assert [(id, str(there.error)) for id, there in fleet.failures("iris", 11.5)] == [
        ("b", "Full."),
        ("a", "Away."),
    ]
    assert [id for id, _ in fleet.failures("iris", 12.5)] == ["b"]
    fleet.apply(Told("b", Update(1, 2, failed=(failed._replace(expires_in_ms=0),))), 12.5)
    assert fleet.failures("iris", 12.5) == []


@pytest.mark.parametrize(
    ("load", "takes"),
    [
        (None, False),
        (LOAD, True),
        (replace(LOAD, draining=True), False),
        (replace(LOAD, cordoned=True), False),
    ],
)
def test_nothing_is_placed_where_it_is_unknown_how_it_goes_or_where_it_ends(
    fleet: Fleet, load: Load | None, takes: bool
) -> None:
    fleet.apply(Told("a", Update(1, 1, load=load)), 0.0)
    peer = fleet.get("a")
    assert peer is not None
    assert peer.takes_loads is takes


def test_a_copy_costs_little_memory(fleet: Fleet) -> None:
    n = 20_000
    tracemalloc.start()
    for start in range(0, n, 1000):
        tell(fleet, "a", start + 1, *(Held(f"model-{start + index}", True) for index in range(1000)))
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    name_bytes = sys.getsizeof("model-10000")
    assert used_bytes / n - name_bytes < 320
