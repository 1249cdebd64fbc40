"""What a benchmark found: rows of one table, each a ratio or a figure beside its target, for people, programs and the docs."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `value` is what the target judges, lower is better; with a reference it is ours ÷ theirs.

    A row without a target (`must` None) informs.
    """

    group: str
    what: str
    ours: str
    theirs: str
    value: float
    must: float | None = None
    aim: float | None = None
    unit: str = "×"

    @property
    def met(self) -> str:
        if self.must is None:
            return ""
        if self.aim is not None and self.value <= self.aim:
            return "aim"
        return "yes" if self.value <= self.must else "NO"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A group that could not be measured here, and the sentence that says why."""

    group: str
    why: str


def console(*, stderr: bool = False) -> Console:
    """Wide enough for the tables when the output is a file."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=160)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cells(row: Row) -> list[str]:
    target = ""
    if row.must is not None:
        target = f"≤ {_number(row.must)}{row.unit}"
        if row.aim is not None:
            target += f" (aim {_number(row.aim)})"
    return [row.group, row.what, row.ours, row.theirs, f"{_number(row.value)}{row.unit}", target, row.met]


HEADINGS = ("group", "what", "ours", "reference", "value", "target", "met")


def show(rows: Sequence[Row], skipped: Sequence[Skipped], console: Console) -> None:
    table = Table(*HEADINGS, title="Benchmarks: one run, side by side")
    previous = None
    for row in rows:
        if previous not in (None, row.group):
            table.add_section()
        previous = row.group
        table.add_row(*_cells(row), style="red" if row.met == "NO" else None)
    console.print(table)
    for each in skipped:
        console.print(f"[yellow]{each.group}[/yellow] was not measured: {each.why}")


def machine() -> str:
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}"


def page(rows: Sequence[Row], skipped: Sequence[Skipped], command: str, *, path: Path = PAGE) -> None:
    """Write the results, with machine, date and command, as a page of the docs."""
    lines = [
        "# Benchmarks",
        "",
        "Every row was measured beside its reference in one run of one command; compare ratios, not figures of other",
        "machines. CPU per request is user and system time of the whole process (for the stacks: of all their processes)",
        "divided by requests whose answers were counted. A target is what the design promises; *aim* means better than that.",
        "",
        f"- machine: {machine()}, Python {platform.python_version()}",
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- command: `{command}`",
    ]
    previous = None
    for row in rows:
        if row.group != previous:
            headings = HEADINGS[1:]
            lines += ["", f"## {row.group}", "", f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
        previous = row.group
        lines.append(f"| {' | '.join(_cells(row)[1:])} |")
    if skipped:
        lines += ["", "Not measured: " + "; ".join(f"{each.group} ({each.why})" for each in skipped) + "."]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
