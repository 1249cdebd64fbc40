"""The table of faults: a run of some replaces the lines of those, and tells below when they were played."""

from __future__ import annotations

from pathlib import Path

from bench.page import Sitting
from bench.reliability import page
from bench.reliability.cluster import Shape
from bench.reliability.faults import FAULTS, Fault
from bench.reliability.registering import Registered
from bench.reliability.rows import Row


def row(fault: Fault, requests: int) -> Row:
    return Row(
        fault.name, fault.says, 8.0, requests, 0, 0, 0, 0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0, 0, Registered(5, 5, ()), [], []
    )  # fmt: skip


def test_a_run_of_some_faults_keeps_the_lines_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "reliability.md"
    path.write_text(f"Before.\n\n{page.BEGINS}\n\n{page.ENDS}\nAfter.\n")

    def write(day: str, requests: int, *faults: Fault) -> list[str]:
        sitting = Sitting(day, "a machine", "a command", "nothing")
        page.write([row(fault, requests) for fault in faults], Shape(), 500, 100, sitting, path)
        text = path.read_text()
        assert text.startswith("Before.\n\n<!-- begins") and text.endswith(f"\n\n{page.ENDS}\nAfter.\n")
        return text.splitlines()

    first, *_, last = FAULTS
    whole = write("monday", 100, *FAULTS)
    write("tuesday", 200, last)
    partly = write("wednesday", 300, last, first)
    assert len(partly) == len(whole) + 4, "two notes"
    assert [line for line in partly if "| 100 |" in line] == [line for line in whole if "| 100 |" in line][
        1:-1
    ]
    assert [line.partition(" | ")[0] for line in partly if "| 300 |" in line] == [
        f"| {first.says}",
        f"| {last.says}",
    ]
    notes = [line for line in partly if "by `a command`" in line]
    said = "by `a command`; a machine; nothing."
    again = [f"*{fault.says}*: wednesday, {said}" for fault in (first, last)]
    assert notes == [f"monday, {said}", *again]
    assert write("thursday", 100, *FAULTS) == [line.replace("monday", "thursday") for line in whole]
