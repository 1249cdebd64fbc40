"""A built-in runtime with real workers, its events taken down and its models asked over their sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import np_to_triton_dtype

from modelmesh.journal import Did
from modelmesh.runtime.builtin import BuiltinConfig, BuiltinRuntime
from modelmesh.runtime.protocol import (
    CapacityChanged,
    CopyLost,
    Loaded,
    ModelSpec,
    Noted,
    ReplicasChanged,
    RuntimeEvent,
    RuntimeInfo,
    TargetsChanged,
)
from modelmesh.runtime.worker_process import WorkerConfig

MIB = 1 << 20
DEADLINE_S = 30.0

Kind = TypeVar("Kind")


class Served:
    """What the mesh would know: events, targets, replicas."""

    def __init__(self, runtime: BuiltinRuntime, socket_dir: Path) -> None:
        self.runtime = runtime
        self.socket_dir = socket_dir
        self.info: RuntimeInfo
        self.events: list[RuntimeEvent] = []
        self.addresses: dict[int, str] = {}
        self.replicas: dict[str, int] = {}
        self.capacity: tuple[int, int] = (0, 0)
        self._clients: dict[str, InferenceServerClient] = {}
        self._changed = asyncio.Condition()

    async def listen(self) -> None:
        """Take events down for ever."""
        while True:
            for event in await self.runtime.next_events():
                self._note(event)
            async with self._changed:
                self._changed.notify_all()

    def _note(self, event: RuntimeEvent) -> None:
        self.events.append(event)
        match event:
            case TargetsChanged(add=add, remove=remove):
                self.addresses |= {target.id: target.address for target in add}
                for target_id in remove:
                    self.addresses.pop(target_id, None)
            case CopyLost(model=model):
                self.replicas.pop(model, None)
            case ReplicasChanged(model=model, replicas=replicas):
                self.replicas[model] = replicas[0].target_id
            case CapacityChanged():
                self.capacity = (event.capacity_bytes, event.unattributed_bytes)

    async def until(self, holds: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until something holds, looking again after each event and a few times a second."""
        ends_s = time.monotonic() + deadline_s
        while not holds():
            assert time.monotonic() < ends_s, f"{what}: not within {deadline_s} s; events: {self.events}"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1), self._changed:
                    await self._changed.wait()

    def seen(self, kind: type[Kind]) -> list[Kind]:
        """All events of a kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    async def load(self, model: str, model_type: str, path: Path) -> Loaded:
        spec = ModelSpec(model, model_type, str(path))
        loaded = await self.runtime.load(spec, await self.runtime.estimate(spec))
        self.replicas[model] = loaded.replicas[0].target_id
        await self.until(lambda: self.replicas[model] in self.addresses, "the target is told")
        return loaded

    async def unload(self, model: str) -> None:
        await self.runtime.unload(model)
        self.replicas.pop(model, None)

    async def infer(self, model: str, features: Any, *outputs: str, name: str = "x") -> dict[str, Any]:
        """The answer of a loaded model. Raises InferenceServerException."""
        address = self.addresses[self.replicas[model]].replace("unix:", "unix://")
        if address not in self._clients:
            options = [("grpc.default_authority", "localhost")]
            self._clients[address] = InferenceServerClient(address, channel_args=options)
        tensor = InferInput(name, list(features.shape), np_to_triton_dtype(features.dtype))
        tensor.set_data_from_numpy(features)
        wanted = [InferRequestedOutput(output) for output in outputs]
        answer = await self._clients[address].infer(
            model, [tensor], outputs=wanted, client_timeout=DEADLINE_S
        )
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    def pids(self) -> list[int]:
        """The worker processes of now."""
        return [seat.worker.pid for seat in self.runtime._supervisor.seats if seat.worker is not None]

    def pid_of(self, model: str) -> int:
        """The worker that holds a model."""
        seats = self.runtime._supervisor.seats
        return next(seat.worker.pid for seat in seats if model in seat.models and seat.worker is not None)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()


@contextlib.asynccontextmanager
async def serving(
    *,
    budget_mib: int = 1000,
    n_workers: int = 1,
    load_timeout_s: float = 30.0,
    stuck_after_s: float = 60.0,
    python_path: Path | None = None,
) -> AsyncIterator[Served]:
    """A started runtime; stopped and checked for leftovers at the end."""
    with tempfile.TemporaryDirectory(prefix="mm-") as folder:
        socket_dir = Path(folder)
        config = BuiltinConfig(
            budget_bytes=budget_mib * MIB,
            workers=WorkerConfig(socket_dir, stuck_after_s=stuck_after_s),
            n_workers=n_workers,
            load_timeout_s=load_timeout_s,
        )
        served = Served(BuiltinRuntime(config), socket_dir)
        served.info = await served.runtime.start()
        listening = asyncio.create_task(served.listen())
        pids: set[int] = set()
        try:
            yield served
        finally:
            pids.update(served.pids())
            await served.close()
            await served.runtime.stop(5.0)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        assert not [pid for pid in pids if is_running(pid)]
        left = await asyncio.to_thread(lambda: list(socket_dir.iterdir()))
        assert left == []


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def column(*values: float) -> Any:
    """One row of features."""
    return np.array([values], dtype=np.float64)


FINE, TROUBLE = column(1, 2, 3, 4), column(1000, 2, 3, 4)
"""What a model of `plugin/strange_models.py` takes calmly, and what makes it do its worst."""


def notes(served: Served, did: Did, model: str = "") -> list[str]:
    """The reasons of the journal notes of a kind about a model."""
    return [note.reason for note in served.seen(Noted) if note.did is did and note.model == model]


async def answers(served: Served, model: str) -> bool:
    """Whether a strange model answers as it should."""
    answer = await served.infer(model, FINE)
    return bool((answer["predict"] == FINE * 2).all())
