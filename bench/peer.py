"""What it costs that a request comes to an instance without the model: one hop more, beside a hit, on one upstream.

Two bare relays, the holder in front of a worker and the entry in front of the holder's peer port, share a core; worker and load
share the other. The hop's cost is what both relays take by way of the entry, less what the holder takes alone.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.load import Run, Shape, Subject, side_by_side, typical, wait_for_answer
from bench.models import OUT
from bench.procs import LOAD_CORE, SERVER_CORE, cpu_s, pin_tree, pinned, running, wait_until
from bench.product import serving
from bench.relay import upstream_of
from bench.report import Row
from bench.stacks import make_models

SHAPES = (Shape(1, 1), Shape(1, 16), Shape(8, 16))
SECONDS_MAX = 2.4
"""Per subject and shape, so that all of it takes about 20 s."""
MUST = 1.2


@dataclass(frozen=True, slots=True)
class Lone:
    """A relay process of its own."""

    pid: int
    grpc: str
    peer: str


@contextlib.contextmanager
def lone_relay(name: str, model: str, address: str) -> Iterator[Lone]:
    log = OUT / "peer" / f"{name}.log"
    command = [sys.executable, "-m", "bench.lone_relay", model, address]
    with running(pinned(SERVER_CORE, command), log=log) as process:
        wait_until(lambda: "\n" in log.read_text(), f"the relay {name}", process=process, log=log)
        grpc, peer = log.read_text().split()
        yield Lone(process.pid, grpc, peer)


def compare(*, seconds: float) -> list[Row]:
    """A row per shape for CPU, and one for latency one request at a time."""
    with contextlib.ExitStack() as stack:
        product = stack.enter_context(serving(make_models()))
        upstream = upstream_of(product)
        for pid in product.workers:
            pin_tree(pid, LOAD_CORE)
        model = upstream.headers["mm-model-id"]
        holder = stack.enter_context(lone_relay("holder", model, upstream.address))
        entry = stack.enter_context(lone_relay("entry", model, holder.peer))

        def subject(at: Lone, *processes: Lone) -> Subject:
            target = replace(upstream, address=at.grpc)
            wait_for_answer(target)
            return Subject(target, lambda: sum(cpu_s(each.pid) for each in processes))

        subjects = {"hit": subject(holder, holder), "hop": subject(entry, entry, holder)}
        each_s = min(seconds, SECONDS_MAX)
        runs = {shape: side_by_side(subjects, shape, seconds=each_s) for shape in SHAPES[1:]}
        direct = {"direct": Subject(upstream, lambda: 0.0)}
        alone = side_by_side({**subjects, **direct}, SHAPES[0], seconds=each_s)
    rows = [_cpu_row(shape, each) for shape, each in ((SHAPES[0], alone), *runs.items())]
    return [*rows, _latency_row(alone)]


def _cpu_row(shape: Shape, runs: Mapping[str, Sequence[Run]]) -> Row:
    added = [hop.cpu_us - hit.cpu_us for hop, hit in zip(runs["hop"], runs["hit"], strict=True)]
    times = [more / hit.cpu_us for more, hit in zip(added, runs["hit"], strict=True)]
    hit = typical(runs["hit"])
    return Row(
        "peer",
        f"CPU per request of one hop more against a hit, {shape}",
        f"{statistics.median(added):.1f} µs ({typical(runs['hop']).per_second:,.0f}/s)",
        f"{hit.cpu_us:.1f} µs ({hit.per_second:,.0f}/s)",
        statistics.median(times),
        MUST,
    )


def _latency_row(runs: Mapping[str, Sequence[Run]]) -> Row:
    hop, hit, direct = (
        statistics.median(run.p50_us for run in runs[name]) for name in ("hop", "hit", "direct")
    )
    return Row(
        "peer",
        "latency of one hop more against a hit, one request at a time",
        f"{hop - hit:.0f} µs p50",
        f"{hit - direct:.0f} µs p50",
        (hop - hit) / (hit - direct),
        MUST,
    )
