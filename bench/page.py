"""The page of results, docs/benchmarks.md: one section per group, each with the machine, day and command it was measured by.

A whole run takes longer than one sitting, so results are kept beside the page in docs/benchmarks.json and a run of some groups
replaces the sections of those only.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from bench.report import HEADINGS, Row, cells

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

ABOUT = {
    "relay": (
        "The relay",
        "The instance beside nghttpx and Envoy in front of the same upstream, each on one core, upstream and load on the other. "
        "Only the proxy's CPU is counted. Shapes are connections × requests in flight on each.",
    ),
    "peer": (
        "A hop to another instance",
        "A bare relay in front of a worker, and another one in front of the peer port of the first, on one core; worker and load "
        "on the other. The hop is what both take together, less what the first takes alone.",
    ),
    "payloads": (
        "Payload processors",
        "One instance without payload processors beside instances with one: CPU of the instance.",
    ),
    "sklearn": (
        "scikit-learn beside MLServer",
        "Whole stacks with all their processes on one core, the load on the other: MLServer 1.7.1 (`parallel_workers=0`), the "
        "same model files, one row per request, equal answers.",
    ),
    "xgboost": ("XGBoost beside MLServer", "As above."),
    "onnx": (
        "ONNX beside MLServer",
        "As above; MLServer runs a model of a few lines over onnxruntime, for it has no runtime of its own for ONNX.",
    ),
    "miss": (
        "Misses",
        "Cold models asked one at a time, each wait split by the journal. *Mesh* is all that is neither queue nor load nor "
        "measuring: fault, decision, publishing, resuming.",
    ),
    "spi": (
        "Models of an external runtime",
        "Behind `mmesh.ModelRuntime`: a scripted server in Python, so only the instance's CPU is counted.",
    ),
    "start": ("Start and idle size", "From command to ready file, and resident memory."),
    "density": (
        "Density",
        "What one model more costs. Instance memory is resident size; that of workers the proportional set size.",
    ),
    "etcd": (
        "Registrations through etcd",
        "One etcd, one instance that registers, one that follows, and one that is started afterwards. ModelMesh's figures were "
        "measured on another day.",
    ),
    "mesh": (
        "Cold models and models in demand in a mesh",
        "Instances of one worker each on one etcd and one machine, each asked as a client would ask it.",
    ),
    "policy": (
        "Policies",
        "Synthetic traces replayed in virtual time through the policies that serve, beside LRU on the same requests and memory.",
    ),
    "soak": (
        "The soak",
        "`make soak`: a zoo of four frameworks in a fraction of its memory, Zipf traffic with a sweep over all models in the "
        "middle, every answer compared with the model's own.",
    ),
}
"""Title and what was done, by group, in the order of the page."""

INTRODUCTION = """\
# Benchmarks

Every figure was measured beside its reference in one run of one command: compare ratios, not times with those of other
machines. CPU per request is user and system time of whole processes divided by requests whose answers were counted. A target
is what the design promises; *aim* means better than that, NO that it is missed.

`make bench` measures all of it, `make bench ARGS="--only relay --quick"` has a short look at one group, and
`make bench ARGS="--only relay --write"` replaces that group's section here (the soak: `make soak ARGS=--write`). What each
section was measured on is said below it."""


@dataclass(frozen=True, slots=True)
class Section:
    """One group's table, and where and when it comes from."""

    date: str
    machine: str
    command: str
    beside: str
    """What else the machine did when the run began."""
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]

    def __str__(self) -> str:
        table = [f"| {' | '.join(line)} |" for line in (self.headings, *self.lines)]
        table.insert(1, "|" + "---|" * len(self.headings))
        told = f"{self.date}, by `{self.command}`; {self.machine}; {self.beside}."
        return "\n".join([*table, "", told])


@dataclass(frozen=True, slots=True)
class Sitting:
    """A run that is about to begin."""

    date: str
    machine: str
    command: str
    beside: str

    @staticmethod
    def now(command: str) -> Sitting:
        today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
        return Sitting(today, machine(), command, f"load average {os.getloadavg()[0]:.1f} before")

    def section(self, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Section:
        return Section(self.date, self.machine, self.command, self.beside, headings, lines)

    def sections(self, rows: Sequence[Row]) -> dict[str, Section]:
        """One for each group; `rows` have those of a group beside each other."""
        return {
            group: self.section(HEADINGS[1:], [cells(row)[1:] for row in each])
            for group, each in groupby(rows, key=lambda row: row.group)
        }


def machine() -> str:
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    release = ".".join(platform.release().split(".")[:2])
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {release}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {system}"


def render(sections: Mapping[str, Section]) -> str:
    """The page of these sections. KeyError when a group is not in ABOUT."""
    parts = [INTRODUCTION]
    for group in sorted(sections, key=list(ABOUT).index):
        title, text = ABOUT[group]
        parts += [f"## {title}", text, str(sections[group])]
    return "\n\n".join(parts) + "\n"


def kept(page: Path = PAGE) -> dict[str, Section]:
    """The sections of the page as it is; none when there is no page."""
    stored = page.with_suffix(".json")
    if not stored.exists():
        return {}
    return {group: Section(**fields) for group, fields in json.loads(stored.read_text()).items()}


def write(sections: Mapping[str, Section], page: Path = PAGE) -> None:
    """Replace these sections of the page and leave the others as they are."""
    merged = {**kept(page), **sections}
    text = render(merged)
    stored = {group: asdict(section) for group, section in merged.items()}
    page.with_suffix(".json").write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    page.write_text(text)
