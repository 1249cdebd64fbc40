"""What a benchmark found: rows of one table, each a ratio or a figure beside its target, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


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


def cells(row: Row) -> list[str]:
    """What a table shows of it, under HEADINGS."""
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
        table.add_row(*cells(row), style="red" if row.met == "NO" else None)
    console.print(table)
    for each in skipped:
        console.print(f"[yellow]{each.group}[/yellow] was not measured: {each.why}")
