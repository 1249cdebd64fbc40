"""Run benchmarks and print them as one table: `python -m bench`, `make bench`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from rich.console import Console

from bench import density, miss, policy, relay, report, stacks
from bench.procs import installed
from bench.report import PAGE, Row, Skipped, page, show

STACKS = tuple(stacks.MODELS)
GROUPS = ("relay", *STACKS, "miss", "density", "policy")
NEEDS = {
    "relay": (("h2load", "nghttp2-client"), ("nghttpx", "nghttp2-proxy"), ("taskset", "util-linux")),
    **dict.fromkeys(STACKS, (("h2load", "nghttp2-client"), ("taskset", "util-linux"))),
}


def missing(group: str) -> str | None:
    """The sentence that says what must be installed first, or None."""
    sentences = [installed(program, package) for program, package in NEEDS.get(group, ())]
    return "; ".join(sentence for sentence in sentences if sentence) or None


def plan(groups: Sequence[str], quick: bool) -> list[tuple[str, Callable[[], list[Row]]]]:
    """What to run, in order. The stacks are one entry, since their servers are shared."""
    seconds = 1.0 if quick else 4.0
    todo: list[tuple[str, Callable[[], list[Row]]]] = []
    if "relay" in groups:
        todo.append(("relay", lambda: relay.compare(seconds=seconds)))
    if names := tuple(name for name in STACKS if name in groups):
        todo.append(("+".join(names), lambda: stacks.compare(names, seconds=seconds)))
    if "miss" in groups:
        todo.append(("miss", lambda: miss.compare(quick=quick)))
    if "density" in groups:
        todo.append(("density", lambda: density.compare(quick=quick)))
    if "policy" in groups:
        todo.append(("policy", lambda: policy.compare(quick=quick)))
    return todo


def run(groups: Sequence[str], *, quick: bool, console: Console) -> tuple[list[Row], list[Skipped]]:
    """Rows of all groups that could be measured, and why the others could not. One failing group does not lose the rest."""
    skipped = [Skipped(group, why) for group in groups if (why := missing(group))]
    here = [group for group in groups if group not in {each.group for each in skipped}]
    rows: list[Row] = []
    for name, measure in plan(here, quick):
        with console.status(f"Measuring {name}"):
            try:
                rows += measure()
            except Exception as problem:
                console.print_exception()
                skipped.append(Skipped(name, f"{type(problem).__name__}: {str(problem).splitlines()[0]}"))
    order = list(dict.fromkeys(row.group for row in rows))
    return sorted(rows, key=lambda row: order.index(row.group)), skipped


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--only", default="", help=f"some of {', '.join(GROUPS)}, separated by commas")
    parser.add_argument("--quick", action="store_true", help="shorter runs and smaller counts, for a look")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md as well")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    groups = tuple(arguments.only.split(",")) if arguments.only else GROUPS
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(GROUPS)}")
    console = report.console(stderr=arguments.json)
    rows, skipped = run(groups, quick=arguments.quick, console=console)
    show(rows, skipped, console)
    if arguments.write:
        page(rows, skipped, shlex.join(["python", "-m", "bench", *sys.argv[1:]]))
        console.print(f"Written: {PAGE}")
    if arguments.json:
        results = [{**asdict(row), "met": row.met} for row in rows]
        print(json.dumps({"rows": results, "skipped": [asdict(each) for each in skipped]}, indent=1))
    return 1 if skipped or any(row.met == "NO" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
