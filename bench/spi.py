"""Models of a server outside, by its mmesh.ModelRuntime protocol: what the instance adds to hits of one model and of many, and
to a miss. The server is the scripted one, in Python: so CPU time is that of the process of the instance alone."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc.aio

from bench.load import INFER
from bench.miss import misses, tiny_request
from bench.procs import cpu_s, running, wait_until
from bench.product import Product, serving
from bench.report import Row

N_MODELS = 2000
STREAMS = 16
_REGISTERED_AT_ONCE = 500


def compare(*, seconds: float, quick: bool) -> list[Row]:
    """Hits of one model beside those of all, and misses."""
    names = [f"model-{number:04}" for number in range(200 if quick else N_MODELS)]
    with _served() as product:
        _register(product, names)
        cold = misses(product, {name: tiny_request(name) for name in names[:-1]})
        one = asyncio.run(_ask(product, names[:1], seconds / 2))
        all_of_them = asyncio.run(_ask(product, names[:-1], seconds / 2))
    added_ms = statistics.median(miss.added_s for miss in cold) * 1000
    load_ms = statistics.median(miss.load_s for miss in cold) * 1000
    ratio = all_of_them / one
    return [
        Row(
            "spi",
            f"one hot model, {STREAMS} at once, CPU of the instance",
            f"{one:.0f} µs",
            "",
            one,
            unit=" µs",
        ),
        Row(
            "spi",
            f"{len(names) - 1} models in turn, beside the one",
            f"{all_of_them:.0f} µs",
            f"{one:.0f} µs",
            ratio,
        ),
        Row(
            "spi",
            f"{len(cold)} misses: beyond queue and loadModel ({load_ms:.2f} ms), predictModelSize included",
            f"{added_ms:.2f} ms p50",
            "",
            added_ms,
            unit=" ms",
        ),
    ]


@contextlib.contextmanager
def _served() -> Iterator[Product]:
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as scratch:
        path, log = Path(scratch, "runtime.sock"), Path(scratch, "runtime.log")
        command = [sys.executable, "-m", "modelmesh.testing.model_runtime", f"unix:{path}"]
        command += ["--capacity-mib", str(4 * N_MODELS)]
        with running(command, log=log) as process:
            wait_until(path.exists, "the scripted runtime", process=process, log=log)
            with serving(None, flags=["--runtime", f"unix:{path}"]) as product:
                yield product


def _register(product: Product, names: Sequence[str]) -> None:
    for start in range(0, len(names), _REGISTERED_AT_ONCE):
        group = [
            {"id": name, "type": "any", "path": name} for name in names[start : start + _REGISTERED_AT_ONCE]
        ]
        answer = product.post("/models:batch", group)
        if answer["failed"]:
            raise RuntimeError(f"{answer['failed']} models could not be registered")


async def _ask(product: Product, names: Sequence[str], seconds: float) -> float:
    """CPU µs of the instance per request, `STREAMS` at a time, the models in turn. Raises AioRpcError when one fails."""
    bodies = [tiny_request(name) for name in names]
    n_asked = 0
    async with grpc.aio.insecure_channel(product.grpc) as channel:
        call = channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
        for body in bodies[:STREAMS]:
            await call(body, timeout=60)
        ends_s = time.monotonic() + seconds

        async def client(first: int) -> None:
            nonlocal n_asked
            place = first
            while time.monotonic() < ends_s:
                await call(bodies[place % len(bodies)], timeout=60)
                place += STREAMS
                n_asked += 1

        before_s = cpu_s(product.pid)
        await asyncio.gather(*(client(number) for number in range(STREAMS)))
        return (cpu_s(product.pid) - before_s) / n_asked * 1e6
