"""The table: on the terminal, and in `docs/reliability.md` between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.page import Sitting
from bench.reliability.cluster import Shape
from bench.reliability.faults import FAULTS
from bench.reliability.rows import Row

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGINS, ENDS = "<!-- begins: written by make reliability -->", "<!-- ends -->"
HEADINGS = (
    *(
        "what happened",
        "lasted s",
        "requests",
        "failed",
        "of its own clients",
        "not to be had",
        "wrong answers",
    ),
    *("p99 before ms", "during", "after", "slowest s", "recovered after s", "loads during", "after"),
    *("registered", "lost", "kept"),
)


def cells(row: Row) -> list[str]:
    registered = row.registered
    return [
        row.says,
        f"{row.lasted_s:.0f}",
        f"{row.requests:,}",
        *(f"{count:,}" for count in (row.failed, row.apart, row.cold, row.wrong)),
        *(f"{p99:,.0f}" for p99 in (row.p99_before_ms, row.p99_during_ms, row.p99_after_ms)),
        f"{row.max_ms / 1000:.1f}",
        f"{row.recovered_s:.1f}",
        f"{row.loads_during:,}",
        f"{row.loads_after:,}",
        f"{registered.acknowledged} of {registered.tried}",
        str(len(registered.lost)),
        "NO" if row.broken else "yes",
    ]


def show(rows: Sequence[Row], console: Console) -> None:
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*cells(row), style="red" if row.broken else None)
    console.print(table)


def show_row(row: Row, console: Console) -> None:
    """In words, as soon as it is known."""
    p99s = f"{row.p99_before_ms:.0f} / {row.p99_during_ms:.0f} / {row.p99_after_ms:.0f} ms"
    console.print(
        f"{row.name}: {row.requests:,} requests, {row.failed} failed, {row.apart} of its own clients, {row.cold} not to be had, "
        f"p99 {p99s}, slowest {row.max_ms / 1000:.1f} s, recovered after {row.recovered_s:.1f} s "
        f"({row.recovered_after_mending_s:.1f} s after it was mended), loads {row.loads_during} / {row.loads_after}, "
        f"registered {row.registered.acknowledged} of {row.registered.tried}",
        markup=False,
    )
    for sentence in row.broken:
        console.print(f"[red]  {sentence}[/red]")
    for sentence in row.told:
        console.print(f"  {sentence}", markup=False)


def write(
    rows: Sequence[Row], shape: Shape, n_models: int, per_second: float, sitting: Sitting, path: Path = PAGE
) -> None:
    """Put the table, and how it was made, in place of the one that is there. A run of some faults replaces the lines of those
    only, and is noted below the others."""
    told = (
        f"{shape.n_instances} instances of {shape.memory} with {shape.workers} worker each, {shape.n_etcd} members of etcd, "
        f"{n_models} models, {per_second:g} requests per second; all on one machine, the clients too."
    )
    before, _, rest = path.read_text().partition(BEGINS)
    there, _, after = rest.partition(ENDS)
    played = {row.says for row in rows}
    lines = {row.says: cells(row) for row in rows}
    notes: list[str] = []
    if not played.issuperset(fault.says for fault in FAULTS):
        former_told, former_table, *former_notes = there.strip().split("\n\n")
        lines = {line[0]: line for line in map(_cells_of, former_table.splitlines()[2:])} | lines
        notes = [note for note in former_notes if note.partition(": ")[0].strip("*") not in played]
        if told != former_told:
            sitting = replace(sitting, beside=f"{sitting.beside}; {told.removesuffix('.')}")
            told = former_told
    ordered = [lines[fault.says] for fault in FAULTS if fault.says in lines]
    table, note = str(sitting.section(HEADINGS, ordered)).split("\n\n")
    notes += [f"*{says}*: {note}" for says in lines if says in played] if notes else [note]
    path.write_text(before + "\n\n".join([BEGINS, told, table, *notes, ENDS]) + after)


def _cells_of(line: str) -> list[str]:
    return line.removeprefix("| ").removesuffix(" |").split(" | ")
