"""A model that is suddenly in demand: when a second copy is decided on, and when it serves."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import numpy as np

from bench.load import INFER
from bench.mesh import mesh, wait_met, warm
from bench.miss import journal, tiny_request
from bench.models import OUT, tiny_models
from bench.product import Product
from bench.report import Row

MODEL_BYTES = 100 * 10**6
N_FEATURES = 4
CLIENTS = 32
SERVES_S = 30.0
CONNECT_S = 10.0


def compare(*, quick: bool) -> list[Row]:
    """Medians of several meshes, each with one copy of the model when many clients begin to ask."""
    found = []
    model = _neighbours()
    tiny = tiny_models(1_000, distinct=False)
    folders = sorted(tiny.iterdir())[:32]
    for _ in range(1 if quick else 5):
        with mesh(2, OUT) as instances:
            paths = {"hot": model, **{folder.name: folder for folder in folders}}
            instances[0].register(
                {"id": id, "type": "sklearn", "path": str(path)} for id, path in paths.items()
            )
            warm(instances, [folder.name for folder in folders])
            found.append(reaction(instances, "hot"))
    decided_s, served_s = (statistics.median(each) for each in zip(*found, strict=True))
    what = f"second copy of a model of {MODEL_BYTES // 10**6} MB that {CLIENTS} clients begin to ask"
    return [
        Row("mesh", f"{what}: decided", f"{decided_s * 1000:.0f} ms", "", decided_s * 1000, 200, 50, " ms"),
        Row("mesh", f"{what}: serves", f"{served_s:.2f} s", "", served_s, 2.0, 0.5, " s"),
    ]


def reaction(instances: list[Product], model: str) -> tuple[float, float]:
    """Seconds from the first of many requests until a second copy is decided on, and until it has served one. TimeoutError when
    that takes too long."""
    entry, other = instances
    entry.post(f"/models/{model}:load")
    wait_met(instances, model)
    holder = entry if entry.get(f"/models/{model}")["replicas"] else other
    second = other if holder is entry else entry
    with asked(holder, model) as began_s:
        while not second.get(f"/models/{model}")["requests_total"]:
            if time.time() - began_s > SERVES_S:
                raise TimeoutError(f"There was no second copy of {model} within {SERVES_S:g} s.")
            time.sleep(0.02)
        served_s = time.time() - began_s
    scaled = (each for each in journal(holder) if (each["did"], each["model"]) == ("scaled", model))
    return next(scaled)["at_unix_s"] - began_s, served_s


@contextmanager
def asked(instance: Product, model: str) -> Iterator[float]:
    """Many clients that are connected ask, each again as soon as it was answered, from the moment given (Unix time) to the end of
    the block. Raises an ExceptionGroup of grpc errors when one is refused."""
    connected, over, failed = threading.Event(), threading.Event(), list[BaseException]()
    began_s = 0.0

    async def ask() -> None:
        nonlocal began_s
        body = tiny_request(model)

        async def client(call: grpc.aio.UnaryUnaryMultiCallable) -> None:
            while not over.is_set():
                await call(body, timeout=60)

        async with grpc.aio.insecure_channel(instance.grpc) as channel, asyncio.TaskGroup() as clients:
            call = channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
            await asyncio.wait_for(channel.channel_ready(), CONNECT_S)
            began_s = time.time()
            connected.set()
            for _ in range(CLIENTS):
                clients.create_task(client(call))

    def run() -> None:
        try:
            asyncio.run(ask())
        except BaseExceptionGroup as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="clients")
    thread.start()
    try:
        if not connected.wait(CONNECT_S):
            raise TimeoutError(f"No client could connect to {instance.grpc}.")
        yield began_s
    finally:
        over.set()
        thread.join(90)
    for error in failed:
        raise error


def _neighbours() -> Path:
    """A classifier that looks through all its data for each row, kept in `bench/out`."""
    path = OUT / "demand" / "neighbours" / "model.joblib"
    if not path.exists():
        import joblib
        from sklearn.neighbors import KNeighborsClassifier

        rng = np.random.default_rng(6)
        rows = rng.standard_normal((MODEL_BYTES // N_FEATURES // 8, N_FEATURES))
        model = KNeighborsClassifier(1, algorithm="brute").fit(rows, rng.integers(0, 3, len(rows)))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        joblib.dump(model, partial)
        partial.rename(path)
    return path.parent
