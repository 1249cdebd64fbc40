"""How the results of `simulate` are shown in a terminal: progress, a table, and bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelmesh.cli.options import add_row, console, table
from modelmesh.settings.sizes import format_size

if TYPE_CHECKING:
    from modelmesh.simulate.report import Run, Stage

_BAR = 40
_CALM = 0.8
"""With busier load slots requests share queued loads, and the bound, which knows no queues, compares with nothing."""


@contextmanager
def progress_bar() -> Iterator[Stage]:
    """A bar on stderr, one stage after the other; nothing when stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    terminal = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(_BAR),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        bar = progress.add_task("", total=1)

        def stage(description: str, total: int) -> Callable[[int], None]:
            progress.reset(bar, description=description, total=max(total, 1))
            return lambda steps: progress.advance(bar, steps)

        yield stage


def trace_line(trace: dict[str, Any]) -> str:
    return (
        f"{trace['source']}: {trace['requests']:,} requests for {trace['models']:,} models in {duration(trace['span_s'])}; "
        f"all models weigh {format_size(trace['total_bytes'])}, the largest {format_size(trace['largest_bytes'])}."
    )


def runs_table(runs: Sequence[Run]) -> Any:
    """One row per run, with the least that any policy could do in the last column."""
    right = ("WARM", "MISSES", "LOADING", "TO LRU", "WAIT MEAN", "WAIT P99", "LOAD SLOTS", "BOUND")
    drawn = table("INSTANCES", "MEMORY", "RULE", *right, right=("INSTANCES", "MEMORY", *right))
    for run in runs:
        outcome = run.outcome
        add_row(
            drawn,
            str(outcome.setup.instances),
            format_size(outcome.setup.memory_bytes),
            str(outcome.setup.rule),
            f"{outcome.warm_share * 100:.2f} %",
            f"{outcome.misses:,}",
            duration(outcome.load_s),
            f"{(outcome.load_s / run.lru_load_s - 1) * 100:+.0f} %" if run.lru_load_s else "-",
            duration(outcome.wait_mean_s),
            duration(outcome.wait_p99_s),
            f"{outcome.slots_busy * 100:.0f} %",
            duration(run.bound.load_s) if outcome.slots_busy <= _CALM else "-",
        )
    return drawn


def bars(runs: Sequence[Run]) -> Any:
    """Seconds of loading as bars, runs of one memory side by side."""
    most_s = max((run.outcome.load_s for run in runs), default=0.0)
    drawn = table("INSTANCES", "MEMORY", "RULE", "SECONDS OF LOADING", right=("INSTANCES", "MEMORY"))
    before = None
    for run in runs:
        setup = run.outcome.setup
        place = (str(setup.instances), format_size(setup.memory_bytes))
        add_row(
            drawn,
            *(place if place != before else ("", "")),
            str(setup.rule),
            _bar(run.outcome.load_s / most_s if most_s else 0.0),
        )
        before = place
    return drawn


def remarks(runs: Sequence[Run]) -> list[str]:
    """What the figures do not say by themselves."""
    said = []
    too_large = max((run.outcome.too_large for run in runs), default=0)
    if too_large:
        said.append(f"{too_large:,} requests asked for models larger than an instance's memory: not served.")
    if any(run.outcome.slots_busy > _CALM for run in runs):
        said.append(
            "Where the load slots are busy nearly all the time, loads queue up and requests share them: a real mesh refuses some."
        )
    if any(run.outcome.thrashing > 0.1 for run in runs):
        said.append("Some runs thrash: loads evict what loads need. More memory is what helps.")
    return said


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    if seconds == 0:
        return "0 s"
    for unit, size in (("d", 86_400.0), ("h", 3_600.0)):
        if seconds >= 3 * size:
            return f"{seconds / size:.1f} {unit}"
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _bar(share: float) -> str:
    eighths = round(share * _BAR * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
