"""The runtime for servers behind mmesh.ModelRuntime, over a scripted one: starts, sizes, failures, lost servers."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from modelmesh.dataplane.protocol import Target
from modelmesh.errors import Code, LoadFailed, LoadTimeout, ModelMeshError, RuntimeUnavailable
from modelmesh.policy.runtimes import Offer
from modelmesh.runtime.protocol import (
    CapacityChanged,
    CopyLost,
    Loaded,
    ModelSpec,
    Noted,
    RuntimeEvent,
    RuntimeInfo,
    SizeChanged,
    TargetsChanged,
    UnloadGivenUp,
)
from modelmesh.runtime.spi.runtime import SpiConfig, SpiRuntime
from modelmesh.testing.model_runtime import (
    LEGACY_SERVICE,
    MIB,
    Call,
    Faults,
    ModelRuntimeServer,
    Script,
)
from modelmesh.wire.generated.model_runtime_pb2 import RuntimeStatusResponse

DEADLINE_S = 20.0
Kind = TypeVar("Kind")


@dataclass
class Watched:
    """A runtime and what it told."""

    runtime: SpiRuntime
    info: RuntimeInfo
    seen: list[RuntimeEvent] = field(default_factory=list)

    async def listen(self) -> None:
        while True:
            self.seen += await self.runtime.next_events()

    def told(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.seen if isinstance(event, kind)]

    async def until(self, holds: Callable[[], Any], what: str) -> None:
        await until(holds, f"{what}; told: {self.seen}")

    async def load(self, model: str, type: str = "any", path: str = "p", key: str = "k") -> Loaded:
        spec = ModelSpec(model, type, path, key)
        return await self.runtime.load(spec, await self.runtime.estimate(spec))


async def until(holds: Callable[[], Any], what: str) -> None:
    ends_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < ends_s, f"{what}: not within {DEADLINE_S} s"
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def socket() -> Any:
    with tempfile.TemporaryDirectory(prefix="mm-") as folder:
        yield f"unix:{folder}/server.sock"


@asynccontextmanager
async def running(*addresses: str, **how: Any) -> AsyncIterator[Watched]:
    """A runtime that has started."""
    runtime = SpiRuntime(SpiConfig(Offer("external"), addresses, **how))
    try:
        watched = Watched(runtime, await runtime.start())
        listening = asyncio.create_task(watched.listen())
        try:
            yield watched
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    finally:
        await runtime.stop(0.1)


@asynccontextmanager
async def pair(
    config: dict[str, Any] | None = None, **how: Any
) -> AsyncIterator[tuple[ModelRuntimeServer, Watched]]:
    """A scripted server and a runtime over it; no contract is broken meanwhile."""
    with socket() as address:
        async with (
            ModelRuntimeServer(how.pop("address", address), **how) as server,
            running(server.address, **config or {}) as watched,
        ):
            yield server, watched
            assert server.violations == []


def run(scenario: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


# --- starting ---------------------------------------------------------------------------------------------------


def test_what_the_server_says_of_itself_is_taken_over() -> None:
    async def scenario() -> None:
        methods = {"a.B/C": [1], "a.B/D": []}
        async with pair(capacity_bytes=64 * MIB, max_loads=3, load_timeout_s=7.5, methods=methods) as (
            server,
            watched,
        ):
            assert watched.info == RuntimeInfo(64 * MIB, 3, frozenset(), 7.5, serves_versions=True)
            await watched.until(lambda: watched.told(TargetsChanged), "the target")
            (target,) = watched.told(TargetsChanged)[0].add
            assert target == Target(
                target.id,
                server.address,
                signals_loss=False,
                methods=(("a.B/C", (1,)), ("a.B/D", ())),
                allow_any_method=False,
            )
            assert server.purges == 1

    run(scenario)


def test_any_method_passes_a_server_that_lists_none() -> None:
    async def scenario() -> None:
        async with pair() as (_, watched):
            await watched.until(lambda: watched.told(TargetsChanged), "the target")
            assert watched.told(TargetsChanged)[0].add[0].allow_any_method

    run(scenario)


def test_a_server_that_starts_slowly_is_waited_for() -> None:
    async def scenario() -> None:
        with socket() as address:
            server = ModelRuntimeServer(address, faults=Faults(starting=2))
            starting = asyncio.create_task(SpiRuntime(SpiConfig(Offer("x"), (address,))).start())
            await asyncio.sleep(0.2)
            assert not starting.done(), "nobody listens yet"
            async with server:
                await starting
                assert len(server.made("runtimeStatus")) == 3
                assert server.purges == 1

    run(scenario)


def test_other_errors_are_polled_again_and_the_first_candidate_that_answers_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        with socket() as address, socket() as nobody:
            faults = Faults(status_error=(Code.PERMISSION_DENIED, "not yet"))
            async with ModelRuntimeServer(address, faults=faults) as server:
                runtime = SpiRuntime(SpiConfig(Offer("x"), (nobody, address)))
                starting = asyncio.create_task(runtime.start())
                await until(lambda: server.made("runtimeStatus"), "a first answer")
                faults.status_error = None
                await starting
                assert "PERMISSION_DENIED, not yet" in caplog.text
                assert "nobody listens" in caplog.text
                await runtime.stop(0.1)

    run(scenario)


def test_the_older_name_of_the_service_is_found() -> None:
    async def scenario() -> None:
        async with pair(service=LEGACY_SERVICE) as (server, watched):
            await watched.load("a")
            assert server.made("loadModel") == [Call("loadModel", "a", "any", "p", "k")]

    run(scenario)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"faults": Faults(status=RuntimeStatusResponse.FAILING)}, "says FAILING"),
        ({"faults": Faults(status=7)}, "says status 7"),
        ({"max_loads": 0}, "maxLoadingConcurrency is 0"),
        ({"default_bytes": 0}, "defaultModelSizeInBytes is 0"),
        ({"load_timeout_s": 0.05}, "less than 100 ms"),
        ({"capacity_bytes": 5 * MIB}, "it must be at least"),
        ({"capacity_bytes": 600 * MIB, "default_bytes": 400 * MIB}, "it must be at least"),
    ],
)
def test_a_server_that_cannot_be_used_stops_the_start(how: dict[str, Any], said: str) -> None:
    async def scenario() -> None:
        with socket() as address:
            async with ModelRuntimeServer(address, **how):
                with pytest.raises(RuntimeUnavailable, match=said):
                    async with running(address):
                        pass

    run(scenario)


def test_nobody_there_is_said_after_the_window_and_a_start_may_be_tried_again() -> None:
    async def scenario() -> None:
        with socket() as address:
            runtime = SpiRuntime(SpiConfig(Offer("x"), (address,), start_window_s=0.3))
            with pytest.raises(RuntimeUnavailable, match=r"within 0.3 s .*nobody listens"):
                await runtime.start()
            async with ModelRuntimeServer(address):
                await runtime.start()
                await runtime.stop(0.1)

    run(scenario)


# --- sizes ------------------------------------------------------------------------------------------------------


def test_sizes_are_predicted_then_told_by_the_load() -> None:
    async def scenario() -> None:
        script = Script(size_bytes=3 * MIB, predicted_bytes=2 * MIB)
        async with pair(scripts={"a": script}) as (_, watched):
            estimate = await watched.runtime.estimate(ModelSpec("a", "any", "p"))
            assert (estimate.size_bytes, estimate.peak_bytes) == (2 * MIB, 2 * MIB)
            loaded = await watched.load("a")
            assert (loaded.size_bytes, loaded.measured) == (3 * MIB, True)

    run(scenario)


def test_a_server_that_predicts_nothing_is_asked_once() -> None:
    async def scenario() -> None:
        async with pair(faults=Faults(predicts=False), default_bytes=5 * MIB) as (server, watched):
            for model in "ab":
                assert (await watched.runtime.estimate(ModelSpec(model, "any", "p"))).size_bytes == 5 * MIB
            assert len(server.made("predictModelSize")) == 1

    run(scenario)


def test_a_slow_prediction_is_not_waited_for_and_asked_again_next_time() -> None:
    async def scenario() -> None:
        async with pair(faults=Faults(predict_s=5.0)) as (server, watched):
            began_s = time.monotonic()
            assert (await watched.runtime.estimate(ModelSpec("a", "any", "p"))).size_bytes == MIB
            assert time.monotonic() - began_s < 4.0
            server.faults.predict_s = 0.0
            server.scripts["a"] = Script(predicted_bytes=7)
            assert (await watched.runtime.estimate(ModelSpec("a", "any", "p"))).size_bytes == 7

    run(scenario)


def test_a_load_that_tells_no_size_is_measured_later() -> None:
    async def scenario() -> None:
        scripts = {
            "a": Script(told_bytes=0, predicted_bytes=4, sized_bytes=9 * MIB),
            "b": Script(told_bytes=0, predicted_bytes=4, size_error=(Code.INTERNAL, "no idea")),
        }
        async with pair(scripts=scripts) as (_, watched):
            for model in scripts:
                loaded = await watched.load(model)
                assert (loaded.size_bytes, loaded.measured) == (4, False)
            await watched.until(lambda: watched.told(SizeChanged), "a size")
            await watched.until(lambda: [n for n in watched.told(Noted) if n.model == "b"], "a note")
            (told,) = watched.told(SizeChanged)
            assert told[:2] == ("a", 9 * MIB)
            assert told.sizing_s > 0

    run(scenario)


def test_gates_are_for_servers_that_limit_what_runs() -> None:
    async def scenario() -> None:
        scripts = {"a": Script(max_concurrency=3), "b": Script(max_concurrency=0)}
        for limits, expected in ((True, [3, 1]), (False, [0, 0])):
            async with pair(scripts=scripts, limits_concurrency=limits) as (_, watched):
                loads = [await watched.load(model) for model in scripts]
                assert [loaded.replicas[0].max_concurrency for loaded in loads] == expected

    run(scenario)


# --- failures ---------------------------------------------------------------------------------------------------


def test_a_failed_load_carries_code_and_text() -> None:
    async def scenario() -> None:
        script = Script(load_error=(Code.FAILED_PRECONDITION, "no such layer"))
        async with pair(scripts={"a": script}) as (_, watched):
            with pytest.raises(LoadFailed, match=r"FAILED_PRECONDITION: no such layer$") as failure:
                await watched.load("a")
            assert failure.value.permanent
            assert failure.value.model == "a"

    run(scenario)


def test_a_load_beyond_the_timeout_is_cancelled_and_the_unload_leaves_nothing() -> None:
    async def scenario() -> None:
        async with pair(scripts={"a": Script(load_s=20.0)}, load_timeout_s=0.2) as (server, watched):
            with pytest.raises(LoadTimeout, match=r"within 0\.2 s"):
                await watched.load("a")
            await watched.runtime.unload("a")
            assert server.cancelled == ["a"]
            assert (server.models, server.loading) == ({}, {})

    run(scenario)


def test_a_server_without_room_says_so() -> None:
    async def scenario() -> None:
        how = {"faults": Faults(refuses_beyond_capacity=True), "capacity_bytes": 10 * MIB}
        async with pair(default=Script(size_bytes=6 * MIB), **how) as (_, watched):
            await watched.load("a")
            with pytest.raises(LoadFailed) as failure:
                await watched.load("b")
            assert failure.value.code is Code.RESOURCE_EXHAUSTED
            assert not failure.value.permanent
            await watched.runtime.unload("b")

    run(scenario)


def test_what_the_server_does_not_have_is_unloaded() -> None:
    async def scenario() -> None:
        async with pair(faults=Faults(unload_unknown=Code.NOT_FOUND)) as (_, watched):
            await watched.runtime.unload("never loaded")

    run(scenario)


def test_an_unload_given_up_makes_its_memory_nobodys_until_it_is_made_up_for() -> None:
    async def scenario() -> None:
        script = Script(size_bytes=5 * MIB, unload_error=(Code.INTERNAL, "stuck"))
        async with pair({"unload_patience_s": 0.05}, scripts={"a": script}) as (_, watched):
            await watched.load("a")
            with pytest.raises(RuntimeUnavailable, match="stuck"):
                await watched.runtime.unload("a")
            await asyncio.sleep(0.06)
            await watched.runtime.unload("a")
            unattributed = lambda: [each.unattributed_bytes for each in watched.told(CapacityChanged)]  # noqa: E731
            await watched.until(lambda: unattributed() == [0, 5 * MIB], "its memory is nobody's")
            assert watched.told(UnloadGivenUp) == [UnloadGivenUp("a")]
            script.unload_error = None
            await watched.load("a")
            await watched.until(lambda: unattributed() == [0, 5 * MIB, 0], "it is charged again")
            await watched.runtime.unload("a")

    run(scenario)


# --- the server goes away -----------------------------------------------------------------------------------------


def test_a_restart_loses_every_copy_and_the_server_is_purged_before_it_is_used_again() -> None:
    async def scenario() -> None:
        async with pair() as (server, watched):
            await watched.until(lambda: watched.told(TargetsChanged), "the target")
            (first,) = watched.told(TargetsChanged)[0].add
            for model in "ab":
                await watched.load(model)
            server.faults.keeps_models = True
            await server.restart()
            await watched.until(lambda: len(watched.told(TargetsChanged)) == 3, "another target")
            assert [lost.model for lost in watched.told(CopyLost)] == ["a", "b"]
            removed, added = watched.told(TargetsChanged)[1:]
            assert removed.remove == (first.id,)
            assert added.add[0].id != first.id
            assert len(server.made("runtimeStatus")) == 2

    run(scenario)


def test_loads_wait_for_a_server_that_is_away_and_those_that_ran_are_run_again() -> None:
    async def scenario() -> None:
        async with pair(scripts={"running": Script(load_s=0.5)}) as (server, watched):
            running = asyncio.create_task(watched.load("running"))
            await watched.until(lambda: "running" in server.loading, "it loads")
            await server.die()
            await watched.until(lambda: watched.runtime._life is None, "the loss is noticed")
            waiting = asyncio.create_task(watched.load("waiting"))
            await watched.runtime.unload("whatever it had")
            await server.start()
            for task in (running, waiting):
                loaded = await task
                assert loaded.replicas[0].target_id == watched.told(TargetsChanged)[-1].add[0].id
            assert set(server.models) == {"running", "waiting"}

    run(scenario)


def test_a_model_that_kills_the_server_twice_is_given_up() -> None:
    async def scenario() -> None:
        async with pair(scripts={"a": Script(kills_server=True)}) as (server, watched):
            loading = asyncio.create_task(watched.load("a"))
            while not loading.done():
                await until(lambda: loading.done() or not server.alive, "it died")
                if not loading.done():
                    await server.start()
            with pytest.raises(LoadFailed, match="went away 2 times"):
                await loading
            assert len(server.made("loadModel", "a")) == 2

    run(scenario)


def test_a_server_that_stays_away_is_said_to_be_away() -> None:
    async def scenario() -> None:
        async with pair(load_timeout_s=0.3) as (server, watched):
            await server.die()
            await watched.until(lambda: watched.runtime._life is None, "the loss is noticed")
            with pytest.raises(RuntimeUnavailable, match="is away") as failure:
                await watched.load("a")
            assert failure.value.retry_after_s
            await server.start()

    run(scenario)


def test_the_end_of_the_serving_connection_alone_ends_a_life() -> None:
    async def scenario() -> None:
        with socket() as address, socket() as serving:
            async with (
                ModelRuntimeServer(address, serving_address=serving) as server,
                running(address, serving_address=serving) as watched,
            ):
                await watched.load("a")
                assert watched.told(TargetsChanged)[0].add[0].address == serving
                await server._servers[0].stop(None)
                await watched.until(lambda: watched.told(CopyLost), "the copy is lost")

    run(scenario)


def test_it_cannot_be_used_before_it_is_started() -> None:
    async def scenario() -> None:
        runtime = SpiRuntime(SpiConfig(Offer("x"), ("unix:/nowhere",)))
        with pytest.raises(ModelMeshError, match="does not run"):
            await runtime.estimate(ModelSpec("a", "any", "p"))
        await runtime.stop(0.1)

    run(scenario)
