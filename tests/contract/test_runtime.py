"""What every runtime promises: one suite over the fake, the built-in one, and a server behind mmesh.ModelRuntime."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import joblib
import pytest
from sklearn.linear_model import LogisticRegression

from modelmesh.dataplane.protocol import Replica, Target
from modelmesh.errors import Code, LoadFailed
from modelmesh.policy.runtimes import Offer
from modelmesh.runtime.builtin import BuiltinConfig, BuiltinRuntime
from modelmesh.runtime.ids import Ids
from modelmesh.runtime.protocol import (
    CopyLost,
    Loaded,
    ModelSpec,
    Runtime,
    RuntimeEvent,
    RuntimeInfo,
    TargetsChanged,
)
from modelmesh.runtime.spi.runtime import SpiConfig, SpiRuntime
from modelmesh.runtime.worker_process import WorkerConfig
from modelmesh.testing.model_runtime import MIB, ModelRuntimeServer, Script
from modelmesh.testing.runtime import Artefact, FakeRuntime

DEADLINE_S = 20.0
Scenario = Callable[["Rig"], Awaitable[None]]
Kind = TypeVar("Kind")


@dataclass
class Rig:
    """A started runtime. Models of paths "good…" load, of "bad" cannot be, of "slow" take a while."""

    runtime: Runtime
    info: RuntimeInfo
    kind: str
    root: Path
    lose_all: Callable[[], Awaitable[None]]
    """Every copy is lost, with its server."""
    holds: Callable[[str], bool]
    """Whether the server itself thinks that it has a model."""
    seen: list[RuntimeEvent]
    heard: asyncio.Event

    def spec(self, model: str, path: str = "good") -> ModelSpec:
        return ModelSpec(model, self.kind, str(self.root / path), '{"any": "key"}')

    async def load(self, model: str, path: str = "good") -> Loaded:
        spec = self.spec(model, path)
        return await self.runtime.load(spec, await self.runtime.estimate(spec))

    def told(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.seen if isinstance(event, kind)]

    def targets(self) -> dict[int, Target]:
        """The targets there are now, by what was told."""
        there: dict[int, Target] = {}
        for change in self.told(TargetsChanged):
            there |= {target.id: target for target in change.add}
            there = {id: target for id, target in there.items() if id not in change.remove}
        return there

    async def listen(self) -> None:
        while True:
            self.seen.extend(await self.runtime.next_events())
            self.heard.set()

    async def clear(self) -> None:
        for model in ("a", "b", "bad", "slow"):
            await self.runtime.unload(model)

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        ends_s = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < ends_s, f"{what}: not within {DEADLINE_S} s; told: {self.seen}"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self.heard.wait()
            self.heard.clear()


@asynccontextmanager
async def _scripted(root: Path) -> AsyncIterator[tuple[Runtime, str, Any, Any]]:
    artefacts = {
        str(root / "good"): Artefact(),
        str(root / "bad"): Artefact(
            error=LoadFailed("It is broken.", code=Code.INVALID_ARGUMENT, model="bad")
        ),
        str(root / "slow"): Artefact(load_s=5.0),
    }
    runtime = FakeRuntime(lambda spec: artefacts.get(spec.path), max_loads=4)

    async def lose_all() -> None:
        for target in list(runtime.targets):
            runtime.crash_target(target)

    yield runtime, "fake", lose_all, lambda model: model in runtime.loaded
    assert runtime.violations == []


@asynccontextmanager
async def _external(root: Path) -> AsyncIterator[tuple[Runtime, str, Any, Any]]:
    server = ModelRuntimeServer(
        f"unix:{root / 'server.sock'}",
        scripts={
            "bad": Script(load_error=(Code.INVALID_ARGUMENT, "It is broken.")),
            "slow": Script(load_s=5.0),
        },
    )
    async with server:
        config = SpiConfig(Offer("external", frozenset({"any"})), (server.address,), ids=Ids())
        runtime = SpiRuntime(config)
        yield runtime, "any", server.restart, lambda model: model in server.models
        assert server.violations == []


@asynccontextmanager
async def _builtin(root: Path) -> AsyncIterator[tuple[Runtime, str, Any, Any]]:
    estimator = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    joblib.dump(estimator, root / "good")
    (root / "bad").write_bytes(b"\x80\x04broken")
    joblib.dump(estimator, root / "slow")
    config = BuiltinConfig(1000 * MIB, WorkerConfig(root / "run"), load_timeout_s=30.0, ids=Ids())
    (root / "run").mkdir()
    runtime = BuiltinRuntime(config)

    async def lose_all() -> None:
        for seat in runtime._supervisor.seats:
            assert seat.worker is not None
            os.kill(seat.worker.pid, signal.SIGKILL)

    def holds(model: str) -> bool:
        return any(model in seat.models for seat in runtime._supervisor.seats)

    yield runtime, "sklearn", lose_all, holds


async def it_says_what_it_offers_and_where_its_replicas_are(rig: Rig) -> None:
    assert rig.info.capacity_bytes > 0
    assert rig.info.max_loads >= 1
    assert rig.info.load_timeout_s > 0
    assert rig.runtime.offer().model_types == rig.info.model_types
    loaded = await rig.load("a")
    again = await rig.load("b")
    assert loaded.size_bytes > 0
    assert rig.holds("a")
    assert loaded.replicas
    assert not {replica.id for replica in loaded.replicas} & {replica.id for replica in again.replicas}
    await rig.until(
        lambda: {replica.target_id for replica in loaded.replicas} <= rig.targets().keys(),
        "the targets of its replicas are told",
    )
    await rig.clear()


async def a_load_that_fails_says_why_and_leaves_nothing(rig: Rig) -> None:
    with pytest.raises(LoadFailed) as failure:
        await rig.load("bad", "bad")
    assert failure.value.code is Code.INVALID_ARGUMENT
    assert failure.value.permanent
    await rig.runtime.unload("bad")
    assert not rig.holds("bad")
    await rig.load("a")
    await rig.clear()


async def a_load_that_is_cancelled_leaves_nothing_once_it_is_unloaded(rig: Rig) -> None:
    loading = asyncio.create_task(rig.load("slow", "slow"))
    await asyncio.sleep(0.05)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await rig.runtime.unload("slow")
    assert not rig.holds("slow")
    await rig.load("a")
    await rig.clear()


async def unloading_is_idempotent_and_a_model_can_come_back(rig: Rig) -> None:
    await rig.runtime.unload("never loaded")
    first = await rig.load("a")
    await rig.runtime.unload("a")
    await rig.runtime.unload("a")
    assert not rig.holds("a")
    second = await rig.load("a")
    assert first.replicas[0].id != second.replicas[0].id
    assert rig.holds("a")
    await rig.clear()


async def a_server_that_dies_loses_its_copies_and_comes_back(rig: Rig) -> None:
    replicas: tuple[Replica, ...] = (await rig.load("a")).replicas + (await rig.load("b")).replicas
    await rig.until(lambda: bool(rig.targets()), "targets")
    await rig.lose_all()
    await rig.until(lambda: {lost.model for lost in rig.told(CopyLost)} == {"a", "b"}, "copies are lost")
    gone = {replica.target_id for replica in replicas}
    await rig.until(lambda: not gone & rig.targets().keys(), "the dead targets are removed")
    again = await rig.load("a")
    assert again.replicas[0].target_id not in gone
    await rig.until(lambda: again.replicas[0].target_id in rig.targets(), "the new target is told")
    assert rig.holds("a")
    await rig.clear()


SCENARIOS: tuple[Scenario, ...] = (
    it_says_what_it_offers_and_where_its_replicas_are,
    a_load_that_fails_says_why_and_leaves_nothing,
    a_load_that_is_cancelled_leaves_nothing_once_it_is_unloaded,
    unloading_is_idempotent_and_a_model_can_come_back,
    a_server_that_dies_loses_its_copies_and_comes_back,
)
"""The last one loses what there is."""


@asynccontextmanager
async def started(make: Any) -> AsyncIterator[Rig]:
    """A rig with a runtime that has started; stopped afterwards, twice."""
    with tempfile.TemporaryDirectory(prefix="mm-") as folder:
        root = Path(folder)
        async with make(root) as (runtime, kind, lose_all, holds):
            rig = Rig(runtime, await runtime.start(), kind, root, lose_all, holds, [], asyncio.Event())
            listening = asyncio.create_task(rig.listen())
            try:
                yield rig
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
                await runtime.stop(1.0)
                await runtime.stop(1.0)


def run(make: Any, *scenarios: Scenario) -> None:
    async def main() -> None:
        async with asyncio.timeout(100), started(make) as rig:
            for scenario in scenarios:
                await scenario(rig)

    asyncio.run(main())


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("make", [_scripted, _external], ids=["fake", "spi"])
def test_contract(make: Any, scenario: Scenario) -> None:
    run(make, scenario)


def test_contract_of_the_builtin_runtime() -> None:
    """All in one: its workers take seconds to start."""
    run(_builtin, *SCENARIOS)
