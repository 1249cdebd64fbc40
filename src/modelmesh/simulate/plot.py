"""The runs as a picture: warm share, load-seconds and waiting over memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from modelmesh.simulate.outcome import Outcome
from modelmesh.simulate.report import Run
from modelmesh.simulate.trace import TraceError

FORMATS: Final = (".svg", ".png", ".pdf")


def check(path: Path) -> None:
    """Raises TraceError when the plot could not be written: before an hour of work, not after."""
    if path.suffix.lower() not in FORMATS:
        raise TraceError(f"A plot is written as {', '.join(FORMATS)}, not {path.name}.")
    if not path.parent.is_dir():
        raise TraceError(f"There is no folder {path.parent} to write the plot into.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise TraceError(
            "Plots need matplotlib: pip install 'pymodelmesh[simulate]'. The table needs nothing more."
        ) from error


def draw(runs: Sequence[Run], title: str, path: Path) -> None:
    """One line per rule and number of instances. Raises OSError when the file cannot be written."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle(title)
    left, middle, right = figure.subplots(1, 3)
    _lines(left, runs, lambda outcome: outcome.warm_share * 100, "requests that find their model loaded, %")
    _lines(middle, runs, lambda outcome: outcome.load_s, "seconds spent on loading")
    _bound(middle, runs)
    _lines(right, runs, lambda outcome: outcome.wait_mean_s * 1000, "mean waiting per request, ms")
    left.legend(fontsize="small")
    middle.legend(fontsize="small")
    # Without a date and random ids, the same runs make the same file.
    dated = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix.lower())
    with rc_context({"svg.hashsalt": "modelmesh"}):
        figure.savefig(path, metadata={dated: None} if dated else None)


def _lines(axes: Any, runs: Sequence[Run], value: Callable[[Outcome], float], label: str) -> None:
    groups: dict[str, list[Outcome]] = {}
    for run in runs:
        setup = run.outcome.setup
        groups.setdefault(_name(str(setup.rule), setup.instances), []).append(run.outcome)
    for name, outcomes in groups.items():
        outcomes = sorted(outcomes, key=lambda outcome: outcome.setup.memory_bytes)
        memory = [outcome.setup.memory_bytes / 2**30 for outcome in outcomes]
        axes.plot(memory, [value(outcome) for outcome in outcomes], marker="o", markersize=3, label=name)
    axes.set_xlabel("memory of all instances, GiB")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _bound(axes: Any, runs: Sequence[Run]) -> None:
    least = {run.outcome.setup.memory_bytes: run.bound.load_s for run in runs}
    memory = sorted(least)
    axes.plot(
        [size_bytes / 2**30 for size_bytes in memory],
        [least[size_bytes] for size_bytes in memory],
        linestyle=":",
        color="gray",
        label="bound",
    )


def _name(rule: str, instances: int) -> str:
    return rule if instances == 1 else f"{rule}, {instances} instances"
