"""What a waiting request says of itself stands in the entries about its model."""

from __future__ import annotations

from modelmesh.journal import Did, Journal
from modelmesh.testing.control import StoppedClock


def test_entries_tell_of_the_request_until_its_waiting_ends() -> None:
    journal = Journal(StoppedClock())
    journal.asked("iris", {"request": "6"})  # served without an entry
    journal.asked("iris", {"request": "7"})
    journal.asked("rose", {"request": "8"})
    journal.asked("rose", {})
    told = [
        journal.record(did, model, "why").request
        for did, model in (
            (Did.LOADING, "iris"),
            (Did.LOADING, "rose"),
            (Did.LOAD_FAILED, "iris"),
            (Did.LOADING, "iris"),
        )
    ]
    assert told == [{"request": "7"}, {}, {"request": "7"}, {}]


def test_requests_of_forgotten_models_are_bounded() -> None:
    journal = Journal(StoppedClock())
    for number in range(10_001):
        journal.asked(str(number), {"request": "7"})
    assert journal.record(Did.REFUSED, "0", "why").request == {}
    assert journal.record(Did.REFUSED, "1", "why").request == {"request": "7"}
