"""Journal entries on their way to the log and to a file."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from modelmesh.errors import SettingsError
from modelmesh.instance import journal_sinks
from modelmesh.instance.journal_sinks import JournalFile, log_entry
from modelmesh.journal import Did, Journal
from modelmesh.testing.control import StoppedClock


def test_entries_are_lines_of_json_in_order(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "journal.jsonl"
    file = JournalFile(path)
    journal = Journal(StoppedClock(100.0), sink=file.append)
    for number in range(2_000):
        journal.record(Did.LOADED, f"m{number}", "it was asked for", size_bytes=number)
    file.close()
    file.close()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["sequence"] for entry in entries] == list(range(1, 2_001))
    assert entries[7] == {
        "sequence": 8,
        "at_unix_s": 100.0,
        "did": "loaded",
        "model": "m7",
        "reason": "it was asked for",
        "numbers": {"size_bytes": 7},
    }


def test_a_second_run_appends(tmp_path: Path) -> None:
    for _ in range(2):
        file = JournalFile(tmp_path / "journal.jsonl")
        file.append(Journal(StoppedClock()).record(Did.LOADED, "m", "r"))
        file.close()
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 2


def test_a_slow_disk_costs_entries_not_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_sinks, "_WAITING_MAX", 10)
    release, writing = threading.Event(), threading.Event()
    file = JournalFile(tmp_path / "journal.jsonl")
    write_all = file._write_all

    def slowly(entries: list[Any]) -> bool:
        writing.set()
        release.wait(10)
        return write_all(entries)

    monkeypatch.setattr(file, "_write_all", slowly)
    journal = Journal(StoppedClock(), sink=file.append)
    journal.record(Did.LOADED, "m", "the first is being written")
    assert writing.wait(10)
    for _ in range(25):
        journal.record(Did.LOADED, "m", "more than can wait")
    release.set()
    file.close()
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert sum("sequence" in line for line in lines) == 11
    assert sum(line.get("left_out", 0) for line in lines) == 15


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--journal-file: .* cannot be written: Is a directory\.$"):
        JournalFile(tmp_path)


def test_what_people_should_see_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(StoppedClock(), sink=log_entry)
    with caplog.at_level(logging.INFO, "modelmesh.journal"):
        journal.record(Did.LOADED, "m", "it was asked for")
        journal.record(Did.QUARANTINED, "bad", "it killed its worker twice", strikes=2)
    (record,) = caplog.records
    assert record.getMessage() == "it killed its worker twice"
    assert record.fields == {"did": "quarantined", "model": "bad", "strikes": 2}  # type: ignore[attr-defined]


def test_what_a_request_said_of_itself_is_in_the_line(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "modelmesh.journal")
    file = JournalFile(tmp_path / "journal.jsonl")
    journal = Journal(StoppedClock(), sink=lambda entry: (log_entry(entry), file.append(entry))[0])
    journal.record(Did.LOADING, "rose", "it was asked for")
    journal.asked("iris", {"request": "7", "model": "a field of ours"})
    journal.record(Did.LOADING, "iris", "it was asked for", waiting=1)
    file.close()
    (record,) = caplog.records
    assert record.__dict__["fields"] == {"request": "7", "did": "loading", "model": "iris", "waiting": 1}
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [line.get("request") for line in lines] == [None, {"request": "7", "model": "a field of ours"}]
