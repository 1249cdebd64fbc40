"""A hot model gets replicas in more workers, and gives them up when it cools. With real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from modelmesh.journal import Did
from modelmesh.runtime import spreading
from modelmesh.runtime.protocol import CopyLost, ReplicasChanged
from tests.integration.builtin_runtime import MIB, TROUBLE, Served, answers, notes, serving

Save = Callable[..., Path]
N_CLIENTS = 3


@contextlib.asynccontextmanager
async def kept_busy(served: Served, model: str) -> AsyncIterator[None]:
    """Clients ask it one request after another; what a death of its worker costs them is their matter."""

    async def ask() -> None:
        while True:
            with contextlib.suppress(InferenceServerException):
                await served.infer(model, TROUBLE)

    clients = [asyncio.create_task(ask()) for _ in range(N_CLIENTS)]
    try:
        yield
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


def holders(served: Served, model: str) -> int:
    return sum(model in seat.models for seat in served.runtime._supervisor.seats)


async def _until_replicas(served: Served, model: str, n: int) -> ReplicasChanged:
    """The event that tells of them."""

    def told() -> bool:
        changes = [change for change in served.seen(ReplicasChanged) if change.model == model]
        return bool(changes) and len(changes[-1].replicas) == n

    await served.until(told, f"{model} has {n} replicas")
    return [change for change in served.seen(ReplicasChanged) if change.model == model][-1]


def test_a_hot_model_is_spread_and_gathered_again(strange: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "SHRINK_S", 1.0)

    async def scenario() -> None:
        async with serving(n_workers=2) as served:
            path = strange("hot", trouble="sleep 0.05", weighs_bytes=4 * MIB)
            loaded = await served.load("hot", "strange", path)
            await served.load("cool", "strange", strange("cool"))
            async with kept_busy(served, "hot"):
                grown = await _until_replicas(served, "hot", 2)
                assert len({replica.target_id for replica in grown.replicas}) == 2
                await served.until(lambda: bool(notes(served, Did.SCALED, "hot")), "it is noted")
                assert notes(served, Did.SCALED, "hot")[0].startswith(
                    "2 workers serve it now: it kept 1 worker busy"
                )
            weighs = [change.size_bytes for change in served.seen(ReplicasChanged) if change.model == "hot"]
            assert weighs[0] >= 2 * loaded.size_bytes, "it is charged before it is loaded"
            assert 1.8 * loaded.size_bytes <= grown.size_bytes <= 2.2 * loaded.size_bytes
            fewer = await _until_replicas(served, "hot", 1)
            await served.until(lambda: holders(served, "hot") == 1, "the other is unloaded")
            assert await answers(served, "hot")
            assert 0.9 * loaded.size_bytes <= fewer.size_bytes
            assert not [change for change in served.seen(ReplicasChanged) if change.model == "cool"]
            await served.unload("hot")
            assert holders(served, "hot") == 0

    asyncio.run(scenario())


def test_a_spread_model_outlives_one_of_its_workers_and_is_unloaded_from_all(strange: Save) -> None:
    async def scenario() -> None:
        async with serving(n_workers=2) as served:
            await served.load("hot", "strange", strange("hot", trouble="sleep 0.05"))
            async with kept_busy(served, "hot"):
                await _until_replicas(served, "hot", 2)
                os.kill(served.pid_of("hot"), signal.SIGKILL)
                await _until_replicas(served, "hot", 1)
                assert not served.seen(CopyLost)
                assert await answers(served, "hot")
                await _until_replicas(served, "hot", 2)
            await served.unload("hot")
            assert holders(served, "hot") == 0

    asyncio.run(scenario())


def test_a_spread_model_that_kills_a_worker_leaves_the_others_too(strange: Save) -> None:
    async def scenario() -> None:
        async with serving(n_workers=2) as served:
            path = strange("hot", trouble="sleep 0.05")
            await served.load("hot", "strange", path)
            async with kept_busy(served, "hot"):
                await _until_replicas(served, "hot", 2)
                os.kill(served.pid_of("hot"), signal.SIGSEGV)
                await served.until(lambda: bool(served.seen(CopyLost)), "it is lost")
                assert [lost.model for lost in served.seen(CopyLost)] == ["hot"]
            await served.until(lambda: holders(served, "hot") == 0, "no worker has it")
            await served.load("hot", "strange", path)
            assert holders(served, "hot") == 1
            await served.until(lambda: len(served.pids()) == 3, "it has a worker of its own now")

    asyncio.run(scenario())
