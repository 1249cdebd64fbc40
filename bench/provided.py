"""Cold models in a mesh: what a miss costs that another instance decides, and how often a model is loaded when it is asked for
at all instances at once."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence

import grpc
import grpc.aio

from bench.load import INFER
from bench.mesh import mesh, warm
from bench.miss import Miss, journal, misses, tiny_request
from bench.models import tiny_models
from bench.product import Product
from bench.report import Row

INSTANCES = 4
AT_ONCE = 1000
"""Concurrent cold faults, spread over models and instances."""


def compare(*, quick: bool) -> list[Row]:
    """Loads in a crowd, then misses one at a time through one of the instances."""
    rounds = 1 if quick else 4
    folders = sorted(tiny_models(2000, distinct=True).iterdir())
    with mesh(INSTANCES, folders[0].parent) as instances:
        names = [folder.name for folder in folders]
        instances[0].register(
            {"id": folder.name, "type": "sklearn", "path": str(folder)} for folder in folders
        )
        left = iter(names)
        warm(instances, left)
        each = AT_ONCE // INSTANCES
        loads = [crowd(instances, [next(left) for _ in range(each)]) for _ in range(rounds)]
        found = provided(instances, [next(left) for _ in range(each)])
    duplicates = statistics.mean(loads) - each
    return [
        Row(
            "mesh",
            f"{AT_ONCE:,} cold requests at once for {each} models, each at all {INSTANCES} instances",
            f"{statistics.mean(loads):,.0f} loads",
            f"{each} models",
            duplicates,
            10,
            0,
            " loads too many",
        ),
        _miss_row("decided by the instance that is asked", found[True], None, None),
        _miss_row("decided by another instance", found[False], 1.5, 0.8),
    ]


def _miss_row(how: str, found: Sequence[Miss], must: float | None, aim: float | None) -> Row:
    added_ms = statistics.median(miss.added_s for miss in found) * 1000
    what = f"cold model, {how}, {len(found)} misses: beyond queue, load and measuring"
    return Row("mesh", what, f"{added_ms:.2f} ms p50", "", added_ms, must, aim, " ms")


def crowd(instances: Sequence[Product], names: Sequence[str]) -> int:
    """Loads, failed ones too, when each model is asked for at every instance, all at once."""
    before = loads_total(instances)
    asyncio.run(_ask(instances, names))
    return loads_total(instances) - before


def loads_total(instances: Sequence[Product]) -> int:
    return sum(
        facts["loads_total"] + facts["load_failures_total"]
        for facts in (instance.get("/instance") for instance in instances)
    )


async def _ask(instances: Sequence[Product], names: Sequence[str]) -> None:
    """Raises grpc.aio.AioRpcError when one is not answered."""
    channels = [grpc.aio.insecure_channel(instance.grpc) for instance in instances]
    calls = [
        channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
        for channel in channels
    ]
    try:
        await asyncio.gather(*(call(tiny_request(name), timeout=60) for name in names for call in calls))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def provided(instances: Sequence[Product], names: Sequence[str]) -> dict[bool, list[Miss]]:
    """Misses of the first instance, by whether it decided itself where to load."""
    first, *others = instances
    found = misses(first, {name: tiny_request(name) for name in names}, others)
    decided = {entry["model"] for other in others for entry in journal(other) if entry["did"] == "placed"}
    return {here: [miss for miss in found if (miss.model in decided) != here] for here in (True, False)}
