"""Whole stacks beside MLServer: the same model files, the same bytes in, one row per request."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tritonclient.grpc import service_pb2 as oip

from bench.environments import environment
from bench.load import Run, Shape, Subject, Target, ratio, side_by_side, typical, wait_for_answer
from bench.makers import KIB, KINDS
from bench.models import OUT
from bench.procs import SERVER_CORE, free_ports, listens, pinned, running, tree_cpu_s, wait_until
from bench.product import serving
from bench.report import Row

REQUIREMENTS = ("mlserver==1.7.1", "xgboost-cpu==3.2.0", "onnxruntime", "scikit-learn", "pandas", "joblib")
RUNTIMES = ("mlserver-sklearn==1.7.1", "mlserver-xgboost==1.7.1")
"""Without their dependencies, which would bring half a gigabyte of GPU libraries."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model both serve; `must` and `aim` bound our CPU as a share of MLServer's."""

    name: str
    kind: str
    size_bytes: int
    implementation: str
    row: tuple[float, ...]
    must: float
    aim: float


WINE = (13.2, 1.8, 2.1, 11.2, 100.0, 2.6, 2.8, 0.3, 1.3, 4.4, 1.05, 3.4, 1050.0)
MODELS = {
    model.name: model
    for model in (
        Model(
            "sklearn",
            "sklearn-linear",
            0,
            "mlserver_sklearn.SKLearnModel",
            (5.1, 3.5, 1.4, 0.2),
            1 / 12,
            1 / 30,
        ),
        Model(
            "xgboost", "xgboost-classifier", 90 * KIB, "mlserver_xgboost.XGBoostModel", WINE, 1 / 12, 1 / 30
        ),
        Model("onnx", "onnx", 64 * KIB, "mlserver_onnx.OnnxModel", WINE, 1 / 8, 1 / 25),
    )
}
SHAPES = {1: Shape(1, 1), 16: Shape(4, 4), 64: Shape(4, 16)}


def request(model: Model) -> bytes:
    """One row, raw, as Triton's and most other clients send it."""
    kind = KINDS[model.kind]
    row = np.asarray(model.row, np.float32 if kind.datatype == "FP32" else np.float64)
    message = oip.ModelInferRequest(model_name=model.name)
    message.inputs.add(name="x", datatype=kind.datatype, shape=[1, len(row)])
    message.raw_input_contents.append(row.tobytes())
    return message.SerializeToString()


def answer(message: bytes) -> list[bytes]:
    """The outputs' bytes, whichever form they came in."""
    return list(oip.ModelInferResponse.FromString(message).raw_output_contents)


def make_models() -> Path:
    """The folder both serve."""
    root = OUT / "stacks" / "models"
    for model in MODELS.values():
        path = root / model.name / KINDS[model.kind].file_name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            KINDS[model.kind].make(path, model.size_bytes, np.random.default_rng(5))
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
    for model in MODELS.values():
        uri = str((models / model.name / KINDS[model.kind].file_name).absolute())
        described = {
            "name": model.name,
            "implementation": model.implementation,
            "parameters": {"uri": uri},
        }
        (folder / model.name).mkdir()
        (folder / model.name / "model-settings.json").write_text(json.dumps(described))
    log, address = folder / "log", f"127.0.0.1:{ports[1]}"
    variables = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = pinned(SERVER_CORE, [str(programs / "mlserver"), "start", str(folder)])
    with running(command, log=log, environment=variables, folder=folder) as process:
        wait_until(lambda: listens(ports[1]), "MLServer", process=process, log=log)
        for model in MODELS.values():
            wait_for_answer(Target(address, request(model), {}))
        yield address, process


def compare(names: tuple[str, ...], *, seconds: float) -> list[Row]:
    """Rows for the models `names`: CPU per request and latency, ours ÷ MLServer's.

    Each server has all its processes on the same core, idle while the other is loaded from the other core.
    """
    models = make_models()
    rows = []
    with (
        mlserver(models) as (address, process),
        serving(models, prefix=pinned(SERVER_CORE, [])) as product,
    ):
        for model in (MODELS[name] for name in names):
            ours = Subject(Target(product.grpc, request(model), {}), lambda: tree_cpu_s(product.pid))
            theirs = Subject(Target(address, request(model), {}), lambda: tree_cpu_s(process.pid))
            if answer(wait_for_answer(ours.target)) != answer(wait_for_answer(theirs.target)):
                raise AssertionError(
                    f"{model.name}: we and MLServer answer differently, so there is nothing to compare"
                )
            for concurrency, shape in SHAPES.items():
                runs = side_by_side({"ours": ours, "theirs": theirs}, shape, seconds=seconds)
                rows += _rows(model, concurrency, runs["ours"], runs["theirs"])
    return rows


def _rows(model: Model, concurrency: int, ours: Sequence[Run], theirs: Sequence[Run]) -> list[Row]:
    our, their = typical(ours), typical(theirs)
    cpu = Row(
        model.name,
        f"CPU per request against MLServer, concurrency {concurrency}",
        f"{our.cpu_us:.1f} µs ({our.per_second:,.0f}/s)",
        f"{their.cpu_us:.0f} µs ({their.per_second:,.0f}/s)",
        ratio(ours, theirs, lambda run: run.cpu_us),
        model.must if concurrency > 1 else None,
        model.aim if concurrency > 1 else None,
    )
    latency = Row(
        model.name,
        f"latency against MLServer, concurrency {concurrency}",
        f"{our.p50_us:.0f} µs p50, {our.p99_us:.0f} p99",
        f"{their.p50_us:.0f} µs p50, {their.p99_us:.0f} p99",
        ratio(ours, theirs, lambda run: run.p50_us),
        1 / 3 if concurrency == 1 else None,
    )
    return [cpu, latency]
