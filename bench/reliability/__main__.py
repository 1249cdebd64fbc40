"""Play the faults and show the table: `python -m bench.reliability`, `make reliability`."""

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
from bench.models import Order, ZooModel, make_model
from bench.page import Sitting
from bench.procs import end_by_exception
from bench.reliability import network, page
from bench.reliability.cluster import Cluster, Shape
from bench.reliability.faults import FAULTS
from bench.reliability.rows import CALM_S, Row, play
from modelmesh.testing.etcd import missing as etcd_missing


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.reliability", description=(__doc__ or "").partition(":")[0] + "."
    )
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--only", default="", help=f"some of {', '.join(names)}, with commas between them")
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--etcd", type=int, default=3, help="members of etcd")
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--rate", type=float, default=100, help="requests per second")
    parser.add_argument(
        "--calm",
        type=float,
        default=CALM_S,
        help="seconds of requests before a fault, and after it is mended",
    )
    parser.add_argument(
        "--keep", type=Path, help="keep logs and journals in this folder, which must not exist"
    )
    parser.add_argument(
        "--write", action="store_true", help=f"write into {page.PAGE.name}; of some faults, their lines"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else names
    if unknown := set(chosen) - set(names):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(names)}")
    if why := etcd_missing() or network.missing():
        parser.exit(2, f"This cannot run here: {why}.\n")
    network.enter("bench.reliability", sys.argv[1:])
    end_by_exception()
    sitting = Sitting.now(shlex.join(["python", "-m", "bench.reliability", *sys.argv[1:]]))
    console = report.console(stderr=arguments.json)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="modelmesh-reliability-"))
    folder.mkdir(parents=True, exist_ok=arguments.keep is None)
    shape = Shape(arguments.instances, arguments.etcd)
    rows: list[Row] = []
    try:
        with console.status("Making models"):
            models = make_models(arguments.models, folder / "models")
        with Cluster(shape, network.Network(), folder / "models", folder) as cluster:
            cluster.running[0].product.register(
                {"id": model.name, "type": "sklearn", "path": model.name} for model in models
            )
            for fault in (fault for fault in FAULTS if fault.name in chosen):
                with console.status(f"{fault.name}: all models are asked for once"):
                    cluster.restore()
                    cluster.warm(models)
                with console.status(f"{fault.name}: {fault.says}"):
                    rows.append(play(fault, cluster, models, arguments.rate, arguments.calm))
                page.show_row(rows[-1], console)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    page.show(rows, console)
    if arguments.write:
        page.write(rows, shape, arguments.models, arguments.rate, sitting)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if any(row.broken for row in rows) else 0


def make_models(count: int, folder: Path) -> list[ZooModel]:
    """Small ones, each with answers of its own."""
    return [make_model(Order(number, "sklearn-linear", 0, number), folder) for number in range(count)]


if __name__ == "__main__":
    sys.exit(main())
