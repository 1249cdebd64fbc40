"""What a model costs when it is only registered, and when it is loaded; and how long a start takes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio

from bench.load import INFER
from bench.makers import KINDS
from bench.miss import tiny_request
from bench.models import tiny_models
from bench.procs import pss_bytes, rss_bytes
from bench.product import serving
from bench.report import Row

MIB = 2**20
N_CLIENTS = 64


def counts(quick: bool) -> tuple[int, ...]:
    return (1_000, 20_000) if quick else (1_000, 20_000, 100_000)


def empty() -> list[Row]:
    """Start-up and memory with nothing registered."""
    starts_s = []
    for _ in range(3):
        with serving(None) as product:
            starts_s.append(product.start_s)
            time.sleep(1)
            instance_bytes, worker_bytes = product.rss_bytes, max(rss_bytes(pid) for pid in product.workers)
    start_s = sorted(starts_s)[1]
    return [
        Row("start", "empty, command to ready", f"{start_s:.2f} s", "", start_s, 1.5, 0.4, " s"),
        _memory("start", "idle instance process", instance_bytes, 90, 40),
        _memory("start", "idle worker, no format imported", worker_bytes, 45, 30),
    ]


def empty_bytes() -> int:
    """What the instance process weighs with nothing registered."""
    with serving(None) as product:
        product.get("/instance")  # the admin API brings its libraries along, which are no model's
        time.sleep(1)
        return product.rss_bytes


def _memory(group: str, what: str, size_bytes: int, must: float | None, aim: float | None) -> Row:
    return Row(group, what, f"{size_bytes / MIB:.0f} MiB", "", size_bytes / MIB, must, aim, " MiB")


def _per_model(what: str, grown_bytes: int, count: int, must: float | None, aim: float | None) -> Row:
    told = f"{grown_bytes / MIB:.1f} MiB more"
    return Row("density", what, told, "", grown_bytes / count, must, aim, " B")


def folder(count: int) -> list[Row]:
    """A start on a folder of so many models, none of them loaded."""
    before_bytes = empty_bytes()
    with serving(tiny_models(count, distinct=False)) as product:
        n_found = product.get("/instance")["models_registered"]
        if n_found != count:
            raise AssertionError(f"{n_found} models of {count} folders were registered when ready")
        grown_bytes = product.rss_bytes - before_bytes
    # The budget of a start is for what is registered already; here each folder is looked into and registered.
    what = f"{count:,} folders nobody knows yet, command to ready"
    return [
        Row("start", what, f"{product.start_s:.2f} s", "", product.start_s, None, None, " s"),
        _per_model(f"registered from a folder, {count:,} models", grown_bytes, count, None, None),
    ]


def registered(count: int) -> list[Row]:
    """Models registered by the admin API into SQLite; then a start on that state."""
    before_bytes = empty_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        kind, root, state = KINDS["sklearn-linear"], Path(scratch, "models"), Path(scratch, "state")
        first = next(tiny_models(1_000, distinct=False).iterdir()) / kind.file_name
        root.mkdir()
        shutil.copy(first, root / kind.file_name)
        flags = ("--model-root", str(root))
        with serving(None, state=state, flags=flags) as product:
            started_s = time.monotonic()
            path = str(root / kind.file_name)
            product.register({"id": f"m{n:06d}", "type": "sklearn", "path": path} for n in range(count))
            rate = count / (time.monotonic() - started_s)
            grown_bytes = product.rss_bytes - before_bytes
        with serving(None, state=state, flags=flags) as product:
            n_found = product.get("/instance")["models_registered"]
            again_bytes, start_s = product.rss_bytes - before_bytes, product.start_s
    if n_found != count:
        raise AssertionError(f"{n_found} of {count} registered models were there after a restart")
    must, aim = (4.0, 1.0) if count >= 100_000 else (None, None)
    per_model = (700, 300) if count >= 100_000 else (None, None)
    # Rates are judged by their inverse, because lower is better in this table.
    return [
        Row(
            "density",
            f"registration in bulk, SQLite, {count:,} models",
            f"{rate:,.0f}/s",
            "",
            1e6 / rate,
            1e6 / 5_000,
            1e6 / 20_000,
            " µs",
        ),
        _per_model(f"registered by the admin API, {count:,} models", grown_bytes, count, *per_model),
        _per_model("the same after a restart", again_bytes, count, *per_model),
        Row("start", f"{count:,} models of a kept state", f"{start_s:.2f} s", "", start_s, must, aim, " s"),
    ]


def resident(count: int) -> list[Row]:
    """So many tiny models, all loaded."""
    folder = tiny_models(count, distinct=True)
    names = sorted(path.name for path in folder.iterdir())
    with serving(folder, memory="8GiB", workers=2) as product:
        # The second half is what counts per model: in the first, workers still import the format.
        asyncio.run(ask_each(product.grpc, names[: count // 2]))
        time.sleep(2)
        half_bytes = sum(pss_bytes(pid) for pid in product.workers)
        started_s = time.monotonic()
        asyncio.run(ask_each(product.grpc, names[count // 2 :]))
        took_s = time.monotonic() - started_s
        instance = product.get("/instance")
        time.sleep(2)
        workers_bytes = sum(pss_bytes(pid) for pid in product.workers)
        all_bytes = workers_bytes + pss_bytes(product.pid)
    if instance["models_loaded"] != count:
        raise AssertionError(f"{instance['models_loaded']} of {count} models are loaded after each was asked")
    must, aim = (700, 350) if count == 20_000 else (None, None)
    told = f"{all_bytes / MIB:.0f} MiB; loaded at {count / 2 / took_s:,.0f}/s"
    return [
        Row(
            "density",
            f"{count:,} resident tiny models, two workers, in all",
            told,
            "",
            all_bytes / MIB,
            must,
            aim,
            " MiB",
        ),
        _per_model(
            f"resident, {count:,} models (workers)", workers_bytes - half_bytes, count // 2, None, None
        ),
    ]


async def ask_each(address: str, names: Sequence[str]) -> None:
    """Every model once, from many clients. Raises an ExceptionGroup of grpc errors when one is not answered."""
    left = iter(names)

    async def client(call: grpc.aio.UnaryUnaryMultiCallable) -> None:
        for name in left:
            await call(tiny_request(name), timeout=120)

    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as clients:
        call = channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
        for _ in range(N_CLIENTS):
            clients.create_task(client(call))
