"""What payload processors cost the calls they listen to: one instance without any beside instances with one, in one run.

Each instance has a core to itself while it is loaded; its worker and the load share the other. CPU is that of the whole
instance process, so that of the threads that send payloads on is counted.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping

from bench.load import Run, Shape, Subject, Target, ratio, side_by_side, typical, wait_for_answer
from bench.procs import LOAD_CORE, SERVER_CORE, cpu_s, pin_tree
from bench.product import serving
from bench.report import Row
from bench.stacks import MODELS, make_models, request

SHAPE = Shape(1, 16)
MODEL = MODELS["onnx"]


@contextlib.contextmanager
def silent_processor() -> Iterator[str]:
    """The URL of one that takes connections and answers nothing: its queue is full, so payloads are collected and dropped."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


@contextlib.contextmanager
def instance(processors: str) -> Iterator[Subject]:
    """`processors` empty: none."""
    flags = ["--payload-processors", processors] if processors else []
    with serving(make_models(), memory="512MiB", flags=flags) as product:
        target = Target(product.grpc, request(MODEL), {})
        wait_for_answer(target)
        pin_tree(product.pid, SERVER_CORE)
        for pid in product.workers:
            pin_tree(pid, LOAD_CORE)
        yield Subject(target, lambda: cpu_s(product.pid))


def compare(*, seconds: float) -> list[Row]:
    """A row for each kind of processor."""
    with contextlib.ExitStack() as stack:
        kinds = {
            "none": "",
            "one that wants another model": "logger:///?nobody",
            "one that is away, so all is dropped": stack.enter_context(silent_processor()),
            "one that logs what it can": "logger:",
        }
        subjects = {kind: stack.enter_context(instance(uris)) for kind, uris in kinds.items()}
        runs = side_by_side(subjects, SHAPE, seconds=seconds)
    return [_row(kind, runs) for kind in kinds if kind != "none"]


def _row(kind: str, runs: Mapping[str, list[Run]]) -> Row:
    ours, without = runs[kind], runs["none"]
    what = f"CPU per request with a payload processor, {kind}, against none, {SHAPE}"
    return Row("payloads", what, _told(ours), _told(without), ratio(ours, without, lambda run: run.cpu_us))


def _told(runs: list[Run]) -> str:
    run = typical(runs)
    return f"{run.cpu_us:.1f} µs ({run.per_second:,.0f}/s)"
