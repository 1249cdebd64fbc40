"""Run benchmarks and print them as one table: `python -m bench`, `make bench`."""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

import grpc
from rich.console import Console

from bench import (
    demand,
    density,
    miss,
    page,
    payloads,
    peer,
    policy,
    provided,
    registrations,
    relay,
    report,
    spi,
    stacks,
)
from bench.procs import end_by_exception, installed
from bench.report import Row, Skipped, show
from modelmesh.testing import etcd

STACKS = tuple(stacks.MODELS)
GROUPS = ("relay", "peer", "payloads", *STACKS, "miss", "spi", "density", "etcd", "mesh", "policy")
NEEDS = {
    "relay": (("h2load", "nghttp2-client"), ("nghttpx", "nghttp2-proxy"), ("taskset", "util-linux")),
    **dict.fromkeys(("peer", "payloads", *STACKS), (("h2load", "nghttp2-client"), ("taskset", "util-linux"))),
}


def missing(group: str) -> str | None:
    """The sentence that says what must be installed first, or None."""
    sentences = [installed(program, package) for program, package in NEEDS.get(group, ())]
    if group in ("etcd", "mesh"):
        sentences.append(etcd.missing())
    return "; ".join(sentence for sentence in sentences if sentence) or None


def plan(groups: Sequence[str], quick: bool) -> list[tuple[str, Callable[[], list[Row]]]]:
    """What to run, in order. The stacks are one entry, since their servers are shared."""
    seconds = 2.0 if quick else 6.0
    names, counts = tuple(name for name in STACKS if name in groups), density.counts(quick)
    todo: list[tuple[str, Callable[[], list[Row]]]] = [
        ("relay", lambda: relay.compare(seconds=seconds)),
        ("peer", lambda: peer.compare(seconds=seconds)),
        ("payloads", lambda: payloads.compare(seconds=seconds)),
        ("stacks", lambda: stacks.compare(names, seconds=seconds)),
        ("miss", lambda: miss.with_room(quick=quick)),
        ("miss", lambda: miss.with_evictions(quick=quick)),
        ("spi", lambda: spi.compare(seconds=seconds, quick=quick)),
        ("density", density.empty),
        *(("density", functools.partial(density.folder, count)) for count in counts),
        ("density", functools.partial(density.registered, counts[-1])),
        *(("density", functools.partial(density.resident, count)) for count in counts),
        ("etcd", lambda: registrations.compare(quick=quick)),
        ("mesh", lambda: demand.compare(quick=quick)),
        ("mesh", lambda: provided.compare(quick=quick)),
        ("policy", lambda: policy.compare(quick=quick)),
    ]
    return [(group, measure) for group, measure in todo if group in groups or (group == "stacks" and names)]


def run(groups: Sequence[str], *, quick: bool, console: Console) -> tuple[list[Row], list[Skipped]]:
    """Rows of all that could be measured, and why the rest could not. One failure does not lose the others."""
    skipped = [Skipped(group, why) for group in groups if (why := missing(group))]
    here = [group for group in groups if group not in {each.group for each in skipped}]
    rows: list[Row] = []
    for name, measure in plan(here, quick):
        with console.status(f"Measuring {name}"):
            try:
                rows += measure()
            except Exception as problem:
                console.print_exception(max_frames=4)
                skipped.append(Skipped(name, sentence(problem)))
    order = list(dict.fromkeys(row.group for row in rows))
    return sorted(rows, key=lambda row: order.index(row.group)), skipped


def sentence(problem: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(problem, grpc.RpcError) and isinstance(problem, grpc.Call):
        return f"{problem.code().name}: {problem.details()}"
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--only", default="", help=f"some of {', '.join(GROUPS)}, separated by commas")
    parser.add_argument("--quick", action="store_true", help="shorter runs and smaller counts, for a look")
    parser.add_argument(
        "--write", action="store_true", help="replace the measured groups' sections of docs/benchmarks.md"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    groups = tuple(arguments.only.split(",")) if arguments.only else GROUPS
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(GROUPS)}")
    end_by_exception()
    console = report.console(stderr=arguments.json)
    sitting = page.Sitting.now(shlex.join(["python", "-m", "bench", *sys.argv[1:]]))
    rows, skipped = run(groups, quick=arguments.quick, console=console)
    show(rows, skipped, console)
    if arguments.write:
        page.write(sitting.sections(rows))
        console.print(f"Written: {page.PAGE}")
    if arguments.json:
        results = [{**asdict(row), "met": row.met} for row in rows]
        print(json.dumps({"rows": results, "skipped": [asdict(each) for each in skipped]}, indent=1))
    return 1 if skipped or any(row.met == "NO" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
