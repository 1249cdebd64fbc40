"""The figures for people: on the terminal, and as docs/announced.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.announced.clients import BOUNDS_MS, Answered
from bench.announced.figures import Figure
from bench.page import Sitting

PAGE = Path(__file__).parents[2] / "docs" / "announced.md"
TITLES = {
    "resident": "20,000 small models in two instances",
    "registered": "300,000 models over eight instances",
}
INTRODUCTION = """\
# The figures ModelMesh was announced with

Its authors showed 20,000 models in two pods of 8 cores and 64 GB under thousands of concurrent requests, answered within
single-digit milliseconds, and told of hundreds of thousands of models registered in production. This is the same with
what is here, on one small machine that clients and etcd share. Anyone can repeat it:

    make announced                          # both, about five minutes
    make announced ARGS="resident --quick"  # a tenth of the models

Models are scikit-learn classifiers; every answer is compared with what the model predicts. Requests follow Zipf's law and
go through all instances; clients do not retry. *A second* means sent when due, whatever became of those before, and timed
from then. *At a time* means that so many wait for an answer at every moment: the machine is saturated, and latency is
what waiting in line takes."""


def show(figure: Figure, console: Console) -> None:
    facts = Table("what", "found", title=TITLES[figure.name])
    for what, found in figure.facts:
        facts.add_row(what, found)
    histogram = Table("latency", *(each.what for each in figure.answered))
    for line in _lines(figure.answered):
        histogram.add_row(*line)
    console.print(facts, histogram)
    for sentence in figure.broken:
        console.print(f"[red]{sentence}[/red]")
    for each in figure.answered:
        for sentence in each.told:
            console.print(f"  {sentence}", markup=False)


def _lines(answered: Sequence[Answered]) -> list[list[str]]:
    """The table of latencies: totals, then one line for each bucket that holds any."""
    lines = [
        ["requests", *(f"{each.asked:,}" for each in answered)],
        ["answered per second", *(f"{each.per_second:,.0f}" for each in answered)],
        ["failed", *(f"{each.errors:,}" for each in answered)],
        ["wrong answers", *(f"{each.wrong:,}" for each in answered)],
        ["p50", *(f"{each.p50_ms:,.1f} ms" for each in answered)],
        ["p99", *(f"{each.p99_ms:,.1f} ms" for each in answered)],
        ["slowest", *(f"{each.max_ms:,.0f} ms" for each in answered)],
    ]
    names = [f"up to {bound:,} ms" for bound in BOUNDS_MS] + [f"more than {BOUNDS_MS[-1]:,} ms"]
    for number, name in enumerate(names):
        counts = [each.counts[number] for each in answered]
        if any(counts):
            shares = [_share(count, each) for count, each in zip(counts, answered, strict=True)]
            lines.append([name, *shares])
    return lines


def _share(count: int, of: Answered) -> str:
    share = count / max(1, sum(of.counts))
    return f"{'█' * round(share * 20)} {share:.2%}".strip()


def write(figures: Sequence[Figure], sitting: Sitting) -> None:
    """The page anew."""
    parts = [INTRODUCTION]
    for figure in figures:
        facts = [f"- {what}: {found}" for what, found in figure.facts]
        headings = ["latency", *(each.what for each in figure.answered)]
        parts += [f"## {TITLES[figure.name]}", "\n".join(facts)]
        parts.append(str(sitting.section(headings, _lines(figure.answered))))
    PAGE.write_text("\n\n".join(parts) + "\n")
