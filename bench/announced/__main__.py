"""The figures that ModelMesh was announced with, measured here: `python -m bench.announced`."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench import report
from bench.announced import page
from bench.announced.figures import Figure, registered, resident
from bench.page import Sitting
from bench.procs import end_by_exception
from bench.reliability import network
from modelmesh.testing.etcd import missing as etcd_missing

FIGURES = ("resident", "registered")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.announced", description=(__doc__ or "").partition(":")[0] + "."
    )
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help=f"{' or '.join(FIGURES)}; by default both"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the models, for a look")
    parser.add_argument("--seconds", type=float, default=20, help="of each kind of load")
    parser.add_argument("--rate", type=float, default=500, help="requests per second of the steady load")
    parser.add_argument("--at-once", type=int, default=2000, help="requests at a time of the other")
    parser.add_argument(
        "--keep", type=Path, help="keep logs and journals in this folder, which must not exist"
    )
    parser.add_argument(
        "--write", action="store_true", help=f"write {page.PAGE.name}, when both were measured"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    chosen = arguments.figures or FIGURES
    if unknown := set(chosen) - set(FIGURES):
        parser.error(f"{', '.join(sorted(unknown))} is none of {', '.join(FIGURES)}")
    if why := etcd_missing() or network.missing():
        parser.exit(2, f"This cannot run here: {why}.\n")
    network.enter("bench.announced", sys.argv[1:])
    end_by_exception()
    console = report.console(stderr=arguments.json)
    sitting = Sitting.now(shlex.join(["python", "-m", "bench.announced", *sys.argv[1:]]))
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="modelmesh-announced-"))
    load = {"rate": arguments.rate, "n_at_once": arguments.at_once, "seconds": arguments.seconds}
    # Every fifth request or so loads a model, with the CPU of the same two cores.
    less_load = {**load, "rate": arguments.rate / 5, "n_at_once": arguments.at_once // 10}
    here = network.Network()
    less = 10 if arguments.quick else 1
    figures: list[Figure] = []
    try:
        if "resident" in chosen:
            figures.append(resident(here, folder / "resident", console, n_models=20_000 // less, **load))
            page.show(figures[-1], console)
        if "registered" in chosen:
            n_models = 300_000 // less
            figures.append(
                registered(
                    here, folder / "registered", console, n_models=n_models, n_instances=8, **less_load
                )
            )
            page.show(figures[-1], console)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    if arguments.write and len(figures) == len(FIGURES):
        page.write(figures, sitting)
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))
    return 1 if any(figure.broken for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
