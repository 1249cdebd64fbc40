"""Whole stacks beside MLServer: the same model files, the same bytes in, one row per request."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tritonclient.grpc import service_pb2 as oip

from bench.environments import environment
from bench.load import Run, Shape, Target, measure, wait_for_answer
from bench.makers import KIB, KINDS
from bench.models import OUT
from bench.procs import SERVER_CORE, pinned, running, tree_cpu_s, wait_until
from bench.product import serving
from bench.report import Row

REQUIREMENTS = ("mlserver==1.7.1", "xgboost-cpu==3.2.0", "onnxruntime", "scikit-learn", "pandas", "joblib")
RUNTIMES = ("mlserver-sklearn==1.7.1", "mlserver-xgboost==1.7.1")
"""Without their dependencies, which would bring half a gigabyte of GPU libraries."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One model both serve; `must` and `aim` bound our CPU as a share of MLServer's."""

    name: str
    kind: str
    size_bytes: int
    implementation: str
    row: tuple[float, ...]
    must: float
    aim: float


WINE = (13.2, 1.8, 2.1, 11.2, 100.0, 2.6, 2.8, 0.3, 1.3, 4.4, 1.05, 3.4, 1050.0)
SUBJECTS = (
    Subject(
        "sklearn", "sklearn-linear", 0, "mlserver_sklearn.SKLearnModel", (5.1, 3.5, 1.4, 0.2), 1 / 12, 1 / 30
    ),
    Subject("xgboost", "xgboost-classifier", 90 * KIB, "mlserver_xgboost.XGBoostModel", WINE, 1 / 12, 1 / 30),
    Subject("onnx", "onnx", 64 * KIB, "mlserver_onnx.OnnxModel", WINE, 1 / 8, 1 / 25),
)
SHAPES = {1: Shape(1, 1), 16: Shape(4, 4), 64: Shape(4, 16)}


def request(subject: Subject) -> bytes:
    """One row, raw, as Triton's and most other clients send it."""
    kind = KINDS[subject.kind]
    row = np.asarray(subject.row, np.float32 if kind.datatype == "FP32" else np.float64)
    message = oip.ModelInferRequest(model_name=subject.name)
    message.inputs.add(name="x", datatype=kind.datatype, shape=[1, len(row)])
    message.raw_input_contents.append(row.tobytes())
    return message.SerializeToString()


def answer(message: bytes) -> list[bytes]:
    """The outputs' bytes, whichever form they came in."""
    return list(oip.ModelInferResponse.FromString(message).raw_output_contents)


def make_models() -> Path:
    """The folder both serve."""
    root = OUT / "stacks" / "models"
    for subject in SUBJECTS:
        path = root / subject.name / KINDS[subject.kind].file_name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            KINDS[subject.kind].make(path, subject.size_bytes, np.random.default_rng(5))
    return root


@contextlib.contextmanager
def mlserver(models: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """MLServer with the subjects loaded, on one core: its gRPC address and process.

    Its own defaults, but no worker processes (which do not start with a current uvloop) and no debug logging.
    """
    programs = environment("mlserver", REQUIREMENTS, without_dependencies=RUNTIMES)
    folder = OUT / "stacks" / "mlserver"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ports = free_ports(3)
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False}
    settings |= dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
    (folder / "settings.json").write_text(json.dumps(settings))
    shutil.copy(Path(__file__).with_name("mlserver_onnx.py"), folder)
    for subject in SUBJECTS:
        uri = str((models / subject.name / KINDS[subject.kind].file_name).absolute())
        described = {
            "name": subject.name,
            "implementation": subject.implementation,
            "parameters": {"uri": uri},
        }
        (folder / subject.name).mkdir()
        (folder / subject.name / "model-settings.json").write_text(json.dumps(described))
    log, address = folder / "log", f"127.0.0.1:{ports[1]}"
    variables = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = pinned(SERVER_CORE, [str(programs / "mlserver"), "start", str(folder)])
    with running(command, log=log, environment=variables, folder=folder) as process:
        wait_until(lambda: listens(ports[1]), "MLServer", process=process, log=log)
        for subject in SUBJECTS:
            wait_for_answer(Target(address, request(subject), {}))
        yield address, process


def free_ports(count: int) -> list[int]:
    """Ports nobody holds now. (Between here and their use someone may take one: then the server says so.)"""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


Runs = dict[tuple[str, int], Run]


def run_all(address: str, pid: int, seconds: float, names: tuple[str, ...]) -> tuple[Runs, dict[str, bytes]]:
    """Every subject at every concurrency, and each subject's answer."""
    runs, answers = {}, {}
    for subject in SUBJECTS:
        if subject.name in names:
            target = Target(address, request(subject), {})
            answers[subject.name] = wait_for_answer(target)
            for concurrency, shape in SHAPES.items():
                runs[subject.name, concurrency] = measure(
                    target, shape, lambda: tree_cpu_s(pid), seconds=seconds
                )
    return runs, answers


def compare(names: tuple[str, ...], *, seconds: float) -> list[Row]:
    """Rows for the subjects `names`: CPU per request and latency, ours ÷ MLServer's.

    Both servers run with all their processes on one core, one after the other, with the load on the other core.
    """
    models = make_models()
    with mlserver(models) as (address, process):
        theirs, their_answers = run_all(address, process.pid, seconds, names)
    with serving(models, prefix=pinned(SERVER_CORE, [])) as product:
        ours, our_answers = run_all(product.grpc, product.pid, seconds, names)
    for name in names:
        if answer(their_answers[name])[0] != answer(our_answers[name])[0]:
            raise AssertionError(
                f"{name}: MLServer and we answer differently, so there is nothing to compare"
            )
    rows = []
    for subject in SUBJECTS:
        if subject.name in names:
            rows += _rows(subject, ours, theirs)
    return rows


def _rows(subject: Subject, ours: Runs, theirs: Runs) -> list[Row]:
    rows = []
    for concurrency in SHAPES:
        our, their = ours[subject.name, concurrency], theirs[subject.name, concurrency]
        judged = concurrency > 1
        rows.append(
            Row(
                subject.name,
                f"CPU per request against MLServer, concurrency {concurrency}",
                f"{our.cpu_us:.1f} µs ({our.per_second:,.0f}/s)",
                f"{their.cpu_us:.0f} µs ({their.per_second:,.0f}/s)",
                our.cpu_us / their.cpu_us,
                subject.must if judged else None,
                subject.aim if judged else None,
            )
        )
    our, their = ours[subject.name, 1], theirs[subject.name, 1]
    latency = (
        f"{our.p50_us:.0f} µs p50, {our.p99_us:.0f} p99",
        f"{their.p50_us:.0f} µs p50, {their.p99_us:.0f} p99",
    )
    rows.append(
        Row(
            subject.name,
            "latency against MLServer, concurrency 1",
            *latency,
            our.p50_us / their.p50_us,
            1 / 3,
        )
    )
    return rows
