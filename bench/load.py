"""Load by h2load, with its answers counted: a native client, so that what is measured is the server.

h2load takes any gRPC answer for a success, because errors ride in trailers. So the bytes of data that came back are compared with
what so many right answers weigh, and a run that falls short raises.
"""

from __future__ import annotations

import re
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench.procs import LOAD_CORE, pinned

INFER = "/inference.GRPCInferenceService/ModelInfer"


class WrongAnswers(Exception):
    """A run in which not every request was answered as expected. Its numbers mean nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send what: `address` is "host:port" or "unix:/path"."""

    address: str
    body: bytes
    headers: Mapping[str, str]

    def ask(self) -> bytes:
        """Send the request once and return the answer's message. Raises grpc.RpcError."""
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(self.address, options=options) as channel:
            call = channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
            return call(self.body, timeout=30, metadata=tuple(self.headers.items()), wait_for_ready=True)


@dataclass(frozen=True, slots=True)
class Run:
    """One load run. `cpu_us` is the watched processes' time per request, `p50_us` and `p99_us` are latencies."""

    requests: int
    seconds: float
    cpu_us: float
    p50_us: float
    p99_us: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to load, and the account of the CPU time it takes."""

    target: Target
    cpu_s: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Shape:
    """How many connections, and how many requests in flight on each."""

    connections: int
    streams: int

    def __str__(self) -> str:
        return f"{self.connections}×{self.streams}"


def side_by_side(
    subjects: Mapping[str, Subject], shape: Shape, *, seconds: float, rounds: int = 3
) -> dict[str, list[Run]]:
    """Load the subjects in turn, `rounds` times, so that what disturbs the machine disturbs all of them."""
    runs: dict[str, list[Run]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            runs[name].append(measure(subject, shape, seconds=seconds / rounds))
    return runs


def ratio(ours: Sequence[Run], theirs: Sequence[Run], of: Callable[[Run], float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(of(our) / of(their) for our, their in zip(ours, theirs, strict=True))


def typical(runs: Sequence[Run]) -> Run:
    """The round with the median CPU time."""
    return sorted(runs, key=lambda run: run.cpu_us)[len(runs) // 2]


def measure(subject: Subject, shape: Shape, *, seconds: float) -> Run:
    """Load for about `seconds`, after a warm-up that also finds how many requests that takes. Raises WrongAnswers."""
    target = subject.target
    answer_bytes = len(target.ask()) + 5
    calibration_n = max(50 * shape.connections * shape.streams, 500)
    took_s = _h2load(target, shape, calibration_n, answer_bytes)[0]
    n_requests = max(calibration_n, int(calibration_n / took_s * seconds))
    before_s = subject.cpu_s()
    took_s, latencies_us = _h2load(target, shape, n_requests, answer_bytes)
    used_s = subject.cpu_s() - before_s
    percentiles = statistics.quantiles(latencies_us, n=100)
    return Run(n_requests, took_s, used_s / n_requests * 1e6, percentiles[49], percentiles[98])


def _h2load(target: Target, shape: Shape, n_requests: int, answer_bytes: int) -> tuple[float, list[int]]:
    """Seconds, and each request's latency in µs."""
    with tempfile.TemporaryDirectory() as scratch:
        body, log = Path(scratch, "body"), Path(scratch, "log")
        body.write_bytes(struct.pack(">BI", 0, len(target.body)) + target.body)
        headers = {"content-type": "application/grpc", "te": "trailers", **target.headers}
        command = [
            "h2load",
            "-n",
            str(n_requests),
            "-c",
            str(shape.connections),
            "-m",
            str(shape.streams),
            "-t1",
        ]
        command += [f"--header={name}: {value}" for name, value in headers.items()]
        command += ["-d", str(body), f"--log-file={log}", *_where(target.address)]
        done = subprocess.run(
            pinned(LOAD_CORE, command), capture_output=True, text=True, timeout=300, check=False
        )
        latencies_us = (
            [int(line.split("\t")[2]) for line in log.read_text().splitlines()] if log.exists() else []
        )
    _check(done.stdout, done.stderr, n_requests, answer_bytes)
    finished = re.search(r"finished in ([\d.]+)(us|ms|s|m)\b", done.stdout)
    if finished is None:
        raise WrongAnswers(f"h2load said something else: {done.stdout[-500:]}")
    unit_s = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[finished[2]]
    return float(finished[1]) * unit_s, latencies_us


def _where(address: str) -> Sequence[str]:
    if address.startswith("unix:"):
        return ["-B", address, f"http://localhost{INFER}"]
    return [f"http://{address}{INFER}"]


def _check(output: str, errors: str, n_requests: int, answer_bytes: int) -> None:
    succeeded = re.search(r"(\d+) succeeded, (\d+) failed", output)
    data = re.search(r"\((\d+)\) data", output)
    if succeeded is None or data is None:
        raise WrongAnswers(f"h2load gave no counts: {(output + errors)[-500:]}")
    n_succeeded, data_bytes = int(succeeded[1]), int(data[1])
    if n_succeeded != n_requests or data_bytes != n_requests * answer_bytes:
        raise WrongAnswers(
            f"of {n_requests} requests {n_succeeded} were answered, with {data_bytes} bytes of data where "
            f"{n_requests * answer_bytes} were expected"
        )


def wait_for_answer(target: Target, *, timeout_s: float = 60) -> bytes:
    """Ask until there is an answer. Raises the last grpc.RpcError when the time is up."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return target.ask()
        except grpc.RpcError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
