"""Registrations through etcd: how fast they go in, what they weigh there, and when other instances have them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio

from bench.density import MIB
from bench.makers import KINDS
from bench.mesh import API, etcd_server, flags
from bench.models import tiny_models
from bench.product import Product, serving
from bench.report import Row
from modelmesh.testing.etcd import Etcd
from modelmesh.wire.generated import model_mesh_pb2 as wire

CLIENTS = 16
PREDECESSOR_US = 1e6 / 1550
"""ModelMesh, one by one through one etcd, measured on this kind of machine."""
PREDECESSOR_BYTES = 166


def compare(*, quick: bool) -> list[Row]:
    """In bulk and one by one, followed by one instance and found by another one."""
    n_bulk, n_single = (10_000, 1_000) if quick else (100_000, 20_000)
    with etcd_server() as etcd, _model_file() as path:
        both = flags(etcd, path.parent)
        with serving(None, flags=both) as first, serving(None, flags=both) as follower:
            started_s, empty_bytes = time.monotonic(), follower.rss_bytes
            first.register(
                {"id": f"bulk-{number:06d}", "type": "sklearn", "path": str(path)} for number in range(n_bulk)
            )
            bulk_s = time.monotonic() - started_s
            behind_s = _until_mirrored(follower, n_bulk)
            grown_bytes = follower.rss_bytes - empty_bytes
            stored_bytes = _stored_bytes(etcd)
            single_s = asyncio.run(_one_by_one(first.grpc, n_single, path))
        with serving(None, flags=both) as late:
            n_found = late.get("/instance")["models_registered"]
            start_s = late.start_s
    if n_found != n_bulk + n_single:
        raise AssertionError(
            f"{n_found} of {n_bulk + n_single} models were there when a new instance was ready"
        )
    whole = n_bulk >= 100_000
    # Rates are judged by their inverse, because lower is better in this table.
    return [
        _row(f"in bulk, {n_bulk:,} models", f"{n_bulk / bulk_s:,.0f}/s", bulk_s / n_bulk * 1e6, 200, 50, " µs"),
        Row(
            "etcd", f"one by one from {CLIENTS} clients, {n_single:,} models",
            f"{n_single / single_s:,.0f}/s", f"{1e6 / PREDECESSOR_US:,.0f}/s (ModelMesh)",
            single_s / n_single * 1e6 / PREDECESSOR_US,
        ),
        _row("another instance has the last of them", f"{behind_s:.2f} s later", behind_s, None, None, " s"),
        _row(
            f"a new instance finds {n_found:,} models: command to ready", f"{start_s:.2f} s", start_s,
            *((4.0, 1.0) if whole else (None, None)), " s",
        ),
        _row(
            "a model in the memory of an instance that follows", f"{grown_bytes / MIB:.1f} MiB more",
            grown_bytes / n_bulk, *((700.0, 300.0) if whole else (None, None)), " B",
        ),
        Row(
            "etcd", "a model in etcd's database", f"{stored_bytes / MIB:.1f} MiB", f"{PREDECESSOR_BYTES} B (ModelMesh)",
            stored_bytes / n_bulk, unit=" B",
        ),
    ]  # fmt: skip


def _row(what: str, told: str, value: float, must: float | None, aim: float | None, unit: str) -> Row:
    return Row("etcd", what, told, "", value, must, aim, unit)


@contextlib.contextmanager
def _model_file() -> Iterator[Path]:
    """One file under a root of its own, for all of them."""
    kind = KINDS["sklearn-linear"]
    with tempfile.TemporaryDirectory() as root:
        first = next(tiny_models(1_000, distinct=False).iterdir()) / kind.file_name
        yield Path(shutil.copy(first, root))


def _until_mirrored(instance: Product, count: int) -> float:
    """Seconds until the instance has so many models."""
    started_s = time.monotonic()
    while instance.get("/instance")["models_registered"] < count:
        if time.monotonic() - started_s > 60:
            raise TimeoutError("Another instance did not get all registrations within a minute.")
        time.sleep(0.005)
    return time.monotonic() - started_s


def _stored_bytes(etcd: Etcd) -> int:
    """What is in use of the database, which may be larger."""
    (told,) = json.loads(etcd.ctl("endpoint", "status", "-w", "json"))
    return int(told["Status"]["dbSizeInUse"])


async def _one_by_one(address: str, count: int, path: Path) -> float:
    """Seconds for so many calls of registerModel. Raises an ExceptionGroup of grpc errors when one fails."""
    left = iter(range(count))
    info = wire.ModelInfo(type="sklearn", path=str(path))

    async def client(call: grpc.aio.UnaryUnaryMultiCallable) -> None:
        for number in left:
            await call(wire.RegisterModelRequest(modelId=f"single-{number:06d}", modelInfo=info), timeout=30)

    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"{API}registerModel",
            request_serializer=wire.RegisterModelRequest.SerializeToString,
            response_deserializer=wire.ModelStatusInfo.FromString,
        )
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(client(call))
        return time.monotonic() - started_s
