"""Behaviours of KServe ModelMesh that its users rely on, by one instance over a scripted runtime (reference mesh.md 13, by its
numbers): relay, mesh, management and the runtime's protocol are real."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from mesh_face import TIMEOUT_S, Face, face_of

from modelmesh.dataplane.protocol import MethodRule
from modelmesh.errors import Code
from modelmesh.policy.runtimes import Offer
from modelmesh.runtime.spi.runtime import SpiConfig, SpiRuntime
from modelmesh.testing.model_runtime import (
    MIB,
    Answer,
    Call,
    Faults,
    ModelRuntimeServer,
    Script,
    id_in,
    read_answer,
    read_answers,
)
from modelmesh.wire.generated import model_mesh_pb2 as pb

PREDICT = "custom.Service/Predict"
INFO = pb.ModelInfo(type="any", path="s3://bucket/model", key='{"storage": 1}')


class Pair:
    """An instance and the scripted server behind it."""

    def __init__(self, face: Face, server: ModelRuntimeServer) -> None:
        self.face = face
        self.server = server

    async def register(self, model: str, *, load: bool = False, sync: bool = False) -> Any:
        return await self.face.call(
            "registerModel",
            modelId=model,
            modelInfo=INFO,
            loadNow=load,
            sync=sync,
            lastUsedTime=round(time.time() * 1000) if load else 0,
        )

    async def call(
        self, headers: tuple[tuple[str, str], ...], body: bytes = b"", method: str = PREDICT
    ) -> bytes:
        answer: bytes = await self.face.channel.unary_unary(f"/{method}")(
            body, timeout=TIMEOUT_S, metadata=headers
        )
        return answer

    async def infer(self, model: str, body: bytes = b"", method: str = PREDICT) -> Answer:
        answer = read_answer(await self.call((("mm-model-id", model),), body, method))
        assert answer.model == model
        return answer

    async def refused(self, *how: Any, **more: Any) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(*how, **more)
        return caught.value.code().name, caught.value.details() or ""

    async def status(self, model: str) -> Any:
        return await self.face.call("getModelStatus", modelId=model)

    async def is_loaded(self, model: str) -> bool:
        return bool((await self.status(model)).status == pb.ModelStatusInfo.LOADED)

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        ends_s = time.monotonic() + TIMEOUT_S
        while not holds():
            assert time.monotonic() < ends_s, f"{what}: {self.server.calls}"
            await asyncio.sleep(0.01)  # what a server did is seen by looking

    def loads(self) -> list[str]:
        return [call.model for call in self.server.made("loadModel")]

    def unloads(self) -> list[str]:
        return [call.model for call in self.server.made("unloadModel")]


@asynccontextmanager
async def pair(*, separate: bool = False, **how: Any) -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="mm-") as name:
        folder = Path(name)
        serving = f"unix:{folder / 'serving.sock'}" if separate else ""
        server = ModelRuntimeServer(f"unix:{folder / 'runtime.sock'}", serving_address=serving, **how)
        async with server:
            runtime = SpiRuntime(SpiConfig(Offer("external"), (server.address,), serving))
            async with face_of(runtime, folder) as face:
                yield Pair(face, server)
                face.mesh.check()
        assert server.violations == []


def run(scenario: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


def message(path: tuple[int, ...], text: str | None, after: bytes = b"\x38\x05") -> bytes:
    """A message with a text at a path, and another field behind it at each level."""
    if text is None:
        return after
    inner = text.encode() if len(path) == 1 else message(path[1:], text, after)
    return bytes([path[0] << 3 | 2]) + varint(len(inner)) + inner + after


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


# --- 1, and what the runtime is told ------------------------------------------------------------------------------


def test_registered_attributes_reach_the_runtime_exactly_and_unregistering_unloads() -> None:
    async def scenario() -> None:
        async with pair() as both:
            unknown = await both.status("a")
            assert (unknown.status, list(unknown.errors)) == (pb.ModelStatusInfo.NOT_FOUND, [])
            registered = await both.register("a", load=True, sync=True)
            assert registered.status == pb.ModelStatusInfo.LOADED
            assert both.server.made("loadModel") == [Call("loadModel", "a", "any", INFO.path, INFO.key)]
            answer = await both.infer("a", b"body")
            assert answer.body == b"body"
            assert answer.headers == {"mm-model-id": "a", "mm-model-id-bin": "a"}
            await both.face.call("unregisterModel", modelId="a")
            await both.until(lambda: "a" not in both.server.models, "it is unloaded")
            assert (await both.status("a")).status == pb.ModelStatusInfo.NOT_FOUND

    run(scenario)


# --- 2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True], ids=["one port", "two ports"])
@pytest.mark.parametrize("unload_unknown", [Code.OK, Code.NOT_FOUND])
@pytest.mark.parametrize("forgotten", ["plain", "triton", "triton-versions", "mlserver"])
def test_2_a_forgotten_model_is_loaded_again_unseen(
    forgotten: str, unload_unknown: Code, separate: bool
) -> None:
    async def scenario() -> None:
        faults = Faults(forgotten=forgotten, unload_unknown=unload_unknown)
        async with pair(separate=separate, faults=faults) as both:
            await both.register("a", load=True, sync=True)
            for times in (2, 3):
                assert both.server.forget("a")
                await both.infer("a")
                assert both.loads() == ["a"] * times
            assert await both.is_loaded("a")

    run(scenario)


def test_2_an_input_error_that_sounds_alike_drops_no_model() -> None:
    async def scenario() -> None:
        script = Script(infer_error=(Code.INVALID_ARGUMENT, "Model input not found"))
        async with pair(scripts={"a": script}) as both:
            await both.register("a", load=True, sync=True)
            refused = await both.refused((("mm-model-id", "a"),))
            assert refused == ("INVALID_ARGUMENT", "Model input not found")
            assert both.loads() == ["a"]

    run(scenario)


def test_2_a_runtime_that_always_says_not_found_is_believed_in_the_end() -> None:
    async def scenario() -> None:
        async with pair(scripts={"a": Script(infer_error=(Code.NOT_FOUND, "no such thing"))}) as both:
            await both.register("a", load=True, sync=True)
            assert await both.refused((("mm-model-id", "a"),)) == ("NOT_FOUND", "no such thing")
            assert both.loads() == ["a", "a"]

    run(scenario)


def test_2_requests_that_wait_while_the_runtime_is_away_are_served_after() -> None:
    async def scenario() -> None:
        async with pair() as both:
            for model in "ab":
                await both.register(model, load=True, sync=True)
            await both.server.die()
            waiting = [asyncio.create_task(both.infer(model)) for model in "ab"]
            await both.server.start()
            for answer in await asyncio.gather(*waiting):
                assert answer.server == 2
            assert sorted(both.loads()) == ["a", "a", "b", "b"]

    run(scenario)


def test_2_a_request_that_runs_when_the_runtime_is_killed_is_served_by_the_next() -> None:
    async def scenario() -> None:
        with tempfile.TemporaryDirectory(prefix="mm-") as folder:
            address = f"unix:{folder}/runtime.sock"
            first = await started(address, '{"infer_s": 600}')
            second = None
            runtime = SpiRuntime(SpiConfig(Offer("external"), (address,)))
            try:
                async with face_of(runtime, Path(folder)) as face:
                    await face.call("registerModel", modelId="a", modelInfo=INFO, loadNow=True, sync=True)
                    call = face.channel.unary_unary(f"/{PREDICT}")
                    running = asyncio.ensure_future(call(b"", timeout=30.0, metadata=(("mm-model-id", "a"),)))
                    await in_flight(face)
                    first.kill()
                    await first.wait()
                    second = await started(address, "{}")
                    assert read_answer(await running).model == "a"
            finally:
                for process in (first, second):
                    if process is not None and process.returncode is None:
                        process.kill()
                        await process.wait()

    run(scenario)


async def started(address: str, default: str) -> asyncio.subprocess.Process:
    """The scripted server as a process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "modelmesh.testing.model_runtime", address, "--default", default),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).decode().strip() == address
    return process


async def in_flight(face: Face) -> None:
    """Return when a request is at the model server."""
    ends_s = time.monotonic() + TIMEOUT_S
    while True:
        rows = face.relay.take_usage()
        if any(row.in_flight for row in rows):
            return
        assert time.monotonic() < ends_s, "no request is in flight"
        await asyncio.sleep(0.01)


# --- 5, 6 -----------------------------------------------------------------------------------------------------------


def test_5_a_full_cache_evicts_exactly_what_is_needed() -> None:
    async def scenario() -> None:
        how = {"capacity_bytes": 1024 * MIB, "default_bytes": 50 * MIB, "max_loads": 6}
        async with pair(**how, default=Script(size_bytes=50 * MIB, unload_s=0.3)) as both:
            for number in range(20):
                await both.register(f"m{number}")
                await both.infer(f"m{number}")
            assert both.unloads() == [], "all bytes may be used: nothing is kept in reserve"
            await both.register("m20")
            await both.infer("m20")
            assert len(both.unloads()) == 1, "one makes room for one"
            order = [call.method for call in both.server.calls if call.method in ("loadModel", "unloadModel")]
            assert order[-2:] == ["unloadModel", "loadModel"], "its bytes are reused once it is gone"
            assert both.server.used_bytes <= both.server.capacity_bytes

    run(scenario)


def test_5_a_model_that_comes_out_larger_evicts_exactly_enough_afterwards() -> None:
    async def scenario() -> None:
        how = {"capacity_bytes": 1024 * MIB, "default_bytes": 50 * MIB, "max_loads": 6}
        large = Script(size_bytes=160 * MIB, predicted_bytes=50 * MIB, told_bytes=0)
        async with pair(**how, default=Script(size_bytes=50 * MIB), scripts={"large": large}) as both:
            for number in range(19):
                await both.register(f"m{number}")
                await both.infer(f"m{number}")
            await both.register("large")
            await both.infer("large")
            await both.until(lambda: len(both.server.models) == 18, "some are evicted")
            # 19 x 50 + 160 = 1110 MiB: two have to go, 36 MiB less would not do.
            assert len(set(both.unloads())) == 2
            assert "large" in both.server.models
            view = both.face.mesh.instance().ledger
            assert view.loaded_bytes == 17 * 50 * MIB + 160 * MIB

    run(scenario)


@pytest.mark.parametrize("unregistering", [False, True])
def test_6_ten_at_once_into_a_full_cache_evict_ten_at_most(unregistering: bool) -> None:
    async def scenario() -> None:
        how = {"capacity_bytes": 20 * MIB, "max_loads": 4}
        async with pair(**how, default=Script(unload_s=0.02, load_s=0.02)) as both:
            for number in range(20):
                await both.register(f"old{number}")
                await both.infer(f"old{number}")
            leaving = [f"old{number}" for number in range(5)] if unregistering else []
            await asyncio.gather(
                *(both.register(f"new{number}", load=True, sync=True) for number in range(10)),
                *(both.face.call("unregisterModel", modelId=model) for model in leaving),
            )
            await both.until(
                lambda: not set(leaving) & set(both.server.models), "those unregistered are gone"
            )
            assert all([await both.is_loaded(f"new{number}") for number in range(10)])
            # Models already chosen to leave when others were unregistered may go too; no more than that.
            assert 10 <= len(set(both.unloads())) <= 10 + len(leaving)
            assert not [model for model in both.unloads() if model.startswith("new")]

    run(scenario)


# --- 7 ------------------------------------------------------------------------------------------------------------


def test_7_requests_overtake_loads_that_were_asked_for_and_promote_queued_ones() -> None:
    async def scenario() -> None:
        async with pair(max_loads=1, default=Script(load_s=0.15)) as both:
            for model in ("running", "first", "second", "third"):
                await both.register(model)
                await both.face.call("ensureLoaded", modelId=model, sync=False)
            await both.register("urgent")
            await both.until(lambda: both.loads() == ["running"], "one loads")
            await asyncio.gather(both.infer("urgent"), both.infer("third"))
            await both.until(lambda: len(both.server.models) == 5, "all are loaded")
            assert both.loads()[0] == "running"
            assert set(both.loads()[1:3]) == {"urgent", "third"}
            assert both.loads()[3:] == ["first", "second"]

    run(scenario)


def test_a_model_that_limits_what_runs_is_never_asked_more() -> None:
    async def scenario() -> None:
        scripts = {name: Script(max_concurrency=2, infer_s=0.02) for name in "ab"}
        for limits in (True, False):
            async with pair(scripts=scripts, limits_concurrency=limits) as both:
                await both.register("a", load=True, sync=True)
                await asyncio.gather(*(both.infer("a") for _ in range(12)))
                assert (both.server.most_running["a"] == 2) == limits
                assert both.server.answers == 12

    run(scenario)


# --- 9 ------------------------------------------------------------------------------------------------------------

NAMES = ["short", "n" * 126, "n" * 127, "n" * 128, "n" * 300]


@pytest.mark.parametrize("path", [(1,), (2, 3)], ids=["depth 1", "depth 2"])
def test_9_the_id_is_taken_from_the_message_and_the_concrete_one_put_there(path: tuple[int, ...]) -> None:
    async def scenario() -> None:
        methods = {PREDICT: list(path)}
        async with pair(methods=methods) as both:
            both.face.relay.set_method_rules([MethodRule(PREDICT, path, vmodel=True)], False)
            for number, vmodel in enumerate(NAMES):
                for model in (f"m{number}", f"v{number}".ljust(len(vmodel), "x"), f"l{number}" + "y" * 129):
                    await both.face.call(
                        "setVModel",
                        vModelId=vmodel,
                        targetModelId=model,
                        modelInfo=INFO,
                        force=True,
                    )
                    body = message(path, vmodel)
                    answer = read_answer(await both.call((), body))
                    assert answer.model == model
                    assert answer.body == message(path, model), "the rest is untouched"
            # A name in the message beats one in a header.
            answer = read_answer(await both.call((("mm-vmodel-id", "unheard of"),), message(path, "short")))
            assert answer.model.startswith("l0")

    run(scenario)


@pytest.mark.parametrize("path", [(1,), (2, 3)], ids=["depth 1", "depth 2"])
def test_9_an_absent_id_comes_from_the_header_and_is_added(path: tuple[int, ...]) -> None:
    async def scenario() -> None:
        async with pair(methods={PREDICT: list(path)}) as both:
            both.face.relay.set_method_rules([MethodRule(PREDICT, path)], False)
            model = "m" * 130
            await both.register(model)
            answer = await both.infer(model, message(path, None))
            assert id_in(answer.body, path) == model
            assert b"\x38\x05" in answer.body

    run(scenario)


# --- 10 -----------------------------------------------------------------------------------------------------------


def test_10_only_listed_methods_pass() -> None:
    async def scenario() -> None:
        async with pair(methods={PREDICT: []}) as both:
            await both.register("a")
            await both.infer("a")
            header = (("mm-model-id", "a"),)
            code, _ = await both.refused(header, method="custom.Service/Other")
            assert code == "UNIMPLEMENTED"
            assert both.server.answers == 1

    run(scenario)


def test_10_the_runtimes_own_service_is_closed_to_clients_even_if_any_method_passes() -> None:
    async def scenario() -> None:
        async with pair(methods={PREDICT: []}, allow_any_method=True) as both:
            await both.register("a")
            await both.infer("a", method="custom.Service/Other")
            for service in ("mmesh.ModelRuntime", "com.ibm.watson.tas.internal.proto.ModelServer"):
                code, _ = await both.refused((("mm-model-id", "a"),), method=f"{service}/unloadModel")
                assert code == "UNIMPLEMENTED"
            assert both.unloads() == []
            assert (await both.refused(()))[0] == "INVALID_ARGUMENT"

    run(scenario)


# --- 11 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED])
def test_11_a_lone_copy_that_refuses_is_called_once_and_stays(code: Code) -> None:
    async def scenario() -> None:
        async with pair(scripts={"a": Script(infer_error=(code, "come again"))}) as both:
            await both.register("a", load=True, sync=True)
            refused = [await both.refused((("mm-model-id", "a"),)) for _ in range(2)]
            assert refused == [(code.name, "come again")] * 2
            assert both.server.asked == 2
            assert both.loads() == ["a"]
            status = await both.status("a")
            assert status.status == pb.ModelStatusInfo.LOADED
            assert len(status.modelCopyInfos) == 1

    run(scenario)


# --- 15 -----------------------------------------------------------------------------------------------------------


def test_15_answers_of_several_models_are_one_message() -> None:
    async def scenario() -> None:
        async with pair() as both:
            for model in "abc":
                await both.register(model)
            headers = tuple(("mm-model-id", model) for model in "abc")
            answers = read_answers(await both.call(headers, b"shared"))
            assert {model: answer.body for model, answer in answers.items()} == dict.fromkeys(
                "abc", b"shared"
            )
            some = await both.call((*headers, ("mm-model-id", "unknown")), b"shared")
            assert set(read_answers(some)) == set("abc")
            code, text = await both.refused((*headers, ("mm-model-id", "unknown"), ("mm-required", "ALL")))
            assert code == "NOT_FOUND"
            assert "unknown" in text

    run(scenario)


# --- 16 -----------------------------------------------------------------------------------------------------------


def test_16_sizes_of_requests_are_counted_in_the_buckets_of_the_predecessor() -> None:
    async def scenario() -> None:
        async with pair() as both:
            await both.register("a")
            for size in [100] * 30 + [1 << 20] * 10:
                await both.infer("a", b"x" * size)
            (sizes,) = [
                each for each in both.face.relay.histograms() if each.metric == "modelmesh_request_size_bytes"
            ]
            assert (sizes.method, sizes.code) == (PREDICT, Code.OK)
            # Bounds are 128 B times powers of four: 128, ..., 512 KiB, 2 MiB, +Inf.
            assert sizes.counts[0] == 30
            assert sum(sizes.counts[:8]) == 40
            assert sum(sizes.counts[:7]) == 30

    run(scenario)
