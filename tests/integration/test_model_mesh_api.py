"""`mmesh.ModelMesh` as a client of the predecessor sees it: a socket of the relay, the mesh behind it, scripted models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from mesh_face import MeshFace, mesh_face

from modelmesh.errors import Code, LoadFailed
from modelmesh.management.model_mesh import HOUR_MS, LEGACY_NAME
from modelmesh.registry.records import ModelRecord
from modelmesh.testing.runtime import Artefact
from modelmesh.wire.generated import model_mesh_pb2 as pb

Status, VStatus = pb.ModelStatusInfo, pb.VModelStatusInfo


def played(tmp_path: Path, scenario: Callable[[MeshFace], Awaitable[None]], **how: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), mesh_face(tmp_path, **how) as face:
            await scenario(face)

    asyncio.run(main())


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110 - a reply of the API makes it hold
            await asyncio.sleep(0.005)


def info(path: str = "", type: str = "fake") -> pb.ModelInfo:
    return pb.ModelInfo(type=type, path=path)


def record(face: MeshFace, model: str) -> ModelRecord:
    found = face.registrar.mirror.model(model)
    assert found is not None
    return found


def broken(text: str = "no such file", **how: Any) -> Artefact:
    return Artefact(error=LoadFailed(text, code=Code.INTERNAL, **how))


# --- behaviour 1 ------------------------------------------------------------------------------------------------


def test_a_model_is_registered_used_and_unregistered(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        unknown = await face.call("getModelStatus", modelId="m")
        assert unknown == Status(status=Status.NOT_FOUND)
        loaded = await face.call("registerModel", modelId="m", modelInfo=info(), loadNow=True, sync=True)
        assert loaded.status == Status.LOADED
        assert await face.infer("m") == "m:x"
        status = await face.call("getModelStatus", modelId="m")
        (copy,) = status.modelCopyInfos
        assert (status.status, list(status.errors)) == (Status.LOADED, [])
        assert (copy.location, copy.copyStatus) == ("here", Status.LOADED)
        assert abs(copy.time / 1000 - time.time()) < 30
        await face.call("unregisterModel", modelId="m")
        assert (await face.call("getModelStatus", modelId="m")).status == Status.NOT_FOUND

        async def gone() -> bool:
            return "m" not in face.runtime.loaded

        await until(gone)
        with pytest.raises(grpc.aio.AioRpcError, match="model not found") as caught:
            await face.infer("m")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await face.call("unregisterModel", modelId="m")

    played(tmp_path, scenario)


def test_registering_again(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        first = await face.call("registerModel", modelId="m", modelInfo=info("p"))
        assert first == Status(status=Status.NOT_LOADED)
        assert await face.infer("m") == "m:x"
        again = await face.call("registerModel", modelId="m", modelInfo=info("p"))
        assert again.status == Status.LOADED
        for other in (info("q"), info("p", "other"), pb.ModelInfo(type="fake", path="p", key="k")):
            code, text = await face.refused("registerModel", modelId="m", modelInfo=other)
            assert (code, "registered already" in text) == ("ALREADY_EXISTS", True)

    played(tmp_path, scenario)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("registerModel", {"modelInfo": info()}),
        ("registerModel", {"modelId": " ", "modelInfo": info()}),
        ("registerModel", {"modelId": "m"}),
        ("registerModel", {"modelId": "m", "modelInfo": info(type=" ")}),
        ("unregisterModel", {}),
        ("getModelStatus", {}),
        ("ensureLoaded", {}),
        ("setVModel", {"targetModelId": "m"}),
        ("setVModel", {"vModelId": "v"}),
        ("setVModel", {"vModelId": "v", "targetModelId": "m", "modelInfo": pb.ModelInfo(path="p")}),
    ],
)
def test_what_is_missing_is_an_invalid_argument(tmp_path: Path, method: str, fields: dict[str, Any]) -> None:
    async def scenario(face: MeshFace) -> None:
        code, text = await face.refused(method, **fields)
        assert code == "INVALID_ARGUMENT"
        assert text.endswith(".")

    played(tmp_path, scenario)


def test_empty_vmodel_ids_are_unknown_vmodels(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        assert await face.call("getVModelStatus") == VStatus(status=VStatus.NOT_FOUND)
        await face.call("deleteVModel")

    played(tmp_path, scenario)


def test_any_type_is_accepted_and_ids_of_the_predecessors_backdoor_are_ids(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        await face.call("registerModel", modelId="m", modelInfo=info(type="nobody serves this"))
        for id in ("***GETSTATE***", "***LOGCACHE***"):
            assert await face.call("getModelStatus", modelId=id) == Status(status=Status.NOT_FOUND)

    played(tmp_path, scenario)


# --- when a model was last used ----------------------------------------------------------------------------------


def test_the_last_use_that_is_stored(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        async def stored(model: str, **fields: Any) -> int:
            await face.call("registerModel", modelId=model, modelInfo=info(), **fields)
            return record(face, model).last_used_ms

        now_ms = round(time.time() * 1000)
        assert await stored("given", lastUsedTime=5) == 5
        for model, used, expected_ms in (
            ("future", (1 << 63) - 1, now_ms),
            ("negative", 1 << 63, now_ms - 6 * HOUR_MS),
            ("cold", 0, now_ms - 6 * HOUR_MS),
        ):
            assert abs(await stored(model, lastUsedTime=used) - expected_ms) < 60_000
        assert abs(await stored("warm", loadNow=True) - (now_ms - HOUR_MS)) < 60_000

        early_ms = now_ms - 100 * HOUR_MS
        assert await stored("m", lastUsedTime=early_ms) == early_ms
        assert await stored("m", lastUsedTime=early_ms + HOUR_MS) == early_ms
        assert await stored("m", lastUsedTime=early_ms + HOUR_MS + 1) == early_ms + HOUR_MS + 1
        assert await stored("m", lastUsedTime=early_ms) == early_ms + HOUR_MS + 1

    played(tmp_path, scenario)


def test_asking_is_no_use_and_ensuring_is(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        await face.call("registerModel", modelId="m", modelInfo=info(), lastUsedTime=5)
        await face.call("getModelStatus", modelId="m")
        assert await face.refused("ensureLoaded", modelId="n") == ("NOT_FOUND", "model not found")
        await face.registrar.stop()
        assert record(face, "m").last_used_ms == 5

    played(tmp_path, scenario)

    async def ensured(face: MeshFace) -> None:
        await face.call("registerModel", modelId="m", modelInfo=info(), lastUsedTime=5)
        answer = await face.call("ensureLoaded", modelId="m", sync=True, lastUsedTime=2_000_000_000)
        assert answer.status == Status.LOADED
        assert face.mesh.model("m").pinned_by == ""
        await face.registrar.stop()
        assert record(face, "m").last_used_ms == 2_000_000_000

    played(tmp_path, ensured)


# --- behaviour 3, and loads ---------------------------------------------------------------------------------------


def test_a_failed_load_is_told_and_passes(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        face.script["p"] = broken("the file is torn", retry_after_s=0.3)
        answer = await face.call("registerModel", modelId="m", modelInfo=info("p"), loadNow=True, sync=True)
        status = await face.call("getModelStatus", modelId="m")
        for reply in (answer, status):
            assert reply.status == Status.LOADING_FAILED
            assert [text.endswith("the file is torn") for text in reply.errors] == [True]
            assert [copy.copyStatus for copy in reply.modelCopyInfos] == [Status.LOADING_FAILED]
        with pytest.raises(grpc.aio.AioRpcError, match="the file is torn") as caught:
            await face.infer("m")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        del face.script["p"]

        async def expired() -> bool:
            return (await face.call("getModelStatus", modelId="m")).status == Status.NOT_LOADED

        await until(expired)
        assert await face.infer("m") == "m:x"
        assert (await face.call("getModelStatus", modelId="m")).status == Status.LOADED

    played(tmp_path, scenario)


def test_while_a_failure_stands_nothing_is_tried(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        face.script["p"] = broken()
        await face.call("registerModel", modelId="m", modelInfo=info("p"))
        for _ in range(3):
            answer = await face.call("ensureLoaded", modelId="m", sync=True)
            assert answer.status == Status.LOADING_FAILED
        assert face.runtime.loads == ["m"]

    played(tmp_path, scenario)


def test_what_never_fits_is_said_to_be_too_large(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        face.script["p"] = Artefact(size_bytes=2000)
        answer = await face.call("registerModel", modelId="m", modelInfo=info("p"), loadNow=True, sync=True)
        assert answer.status == Status.LOADING_FAILED
        assert "raise the memory" in answer.errors[0]

    played(tmp_path, scenario, budget_bytes=1000)


def test_a_waiter_that_leaves_does_not_end_the_load(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        face.script["p"] = Artefact(load_s=0.5)
        face.script["q"] = Artefact(load_s=0.01)
        fields = {"loadNow": True, "sync": True, "timeout_s": 0.2}
        code, _ = await face.refused("registerModel", modelId="m", modelInfo=info("p"), **fields)
        assert code == "DEADLINE_EXCEEDED"
        queued = asyncio.create_task(
            face.call("registerModel", modelId="n", modelInfo=info("q"), loadNow=True, sync=True)
        )

        async def known() -> bool:
            return (await face.call("getModelStatus", modelId="n")).status == Status.LOADING

        await until(known)
        status = await face.call("getModelStatus", modelId="m")
        assert [copy.copyStatus for copy in status.modelCopyInfos] == [Status.LOADING]
        queued.cancel()

        async def both() -> bool:
            return {"m", "n"} <= face.runtime.loaded.keys()

        await until(both)
        assert face.runtime.loads == ["m", "n"]

    played(tmp_path, scenario, max_loads=1)


def test_requests_overtake_loads_that_were_asked_for(tmp_path: Path) -> None:
    """Behaviour 7: those that come are first, and one already queued is promoted."""

    async def scenario(face: MeshFace) -> None:
        for at in range(6):
            face.script[f"p{at}"] = Artefact(load_s=0.15)
            model = {"modelId": f"m{at}", "modelInfo": info(f"p{at}")}
            await face.call("registerModel", loadNow=at < 5, **model)
        answers = [asyncio.create_task(face.infer("m4"))]

        async def wanted() -> bool:
            return face.mesh.model("m4").waiting > 0

        await until(wanted)
        answers.append(asyncio.create_task(face.infer("m5")))
        assert await asyncio.gather(*answers) == ["m4:x", "m5:x"]
        assert set(face.runtime.loads[:3]) == {"m0", "m4", "m5"}

    played(tmp_path, scenario, max_loads=1)


# --- behaviour 10: who is let in ----------------------------------------------------------------------------------


def test_the_runtimes_own_service_is_closed(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        for service in ("mmesh.ModelRuntime", "com.ibm.watson.tas.internal.proto.ModelServer"):
            rpc = face.channel.unary_unary(f"/{service}/unloadModel")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc(b"", timeout=5, metadata=(("mm-model-id", "m"),))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await face.channel.unary_unary("/test.Service/Infer")(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    played(tmp_path, scenario)


@pytest.mark.parametrize("service", ["mmesh.ModelMesh", LEGACY_NAME])
def test_older_names_are_honoured(tmp_path: Path, service: str) -> None:
    async def scenario(face: MeshFace) -> None:
        await face.call("addModel", service, modelId="m", modelInfo=info())
        assert (await face.call("getModelStatus", service, modelId="m")).status == Status.NOT_LOADED
        await face.call("setVModel", service, vModelId="v", targetModelId="m")
        assert (await face.refused("deleteModel", service, modelId="m"))[0] == "FAILED_PRECONDITION"
        await face.call("deleteVModel", service, vModelId="v")
        await face.call("deleteModel", service, modelId="m")
        assert (await face.call("getModelStatus", modelId="m")).status == Status.NOT_FOUND

    played(tmp_path, scenario)


# --- behaviour 14: vmodels ----------------------------------------------------------------------------------------


def test_vmodels_keep_their_models(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        code, text = await face.refused("setVModel", vModelId="v", targetModelId="m")
        assert (code, text.startswith("model not found")) == ("NOT_FOUND", True)
        await face.call("registerModel", modelId="m", modelInfo=info())
        code, text = await face.refused("setVModel", vModelId="v", targetModelId="m", updateOnly=True)
        assert (code, text.startswith("vmodel not found")) == ("NOT_FOUND", True)
        made = await face.call("setVModel", vModelId="v", targetModelId="m")
        assert made == VStatus(
            status=VStatus.DEFINED,
            activeModelId="m",
            targetModelId="m",
            activeModelStatus=Status(status=Status.NOT_LOADED),
        )
        code, text = await face.refused("unregisterModel", modelId="m")
        assert (code, "(v)" in text) == ("FAILED_PRECONDITION", True)
        assert await face.infer("v", "mm-vmodel-id") == "m:x"
        with pytest.raises(grpc.aio.AioRpcError, match="vmodel not found"):
            await face.infer("w", "mm-vmodel-id")
        await face.call("deleteVModel", vModelId="v")
        await face.call("unregisterModel", modelId="m")

    played(tmp_path, scenario)


@pytest.mark.parametrize(
    ("present", "expected", "target", "code"),
    [
        ("", "", "b", ""),
        ("", "b", "b", ""),
        ("", "a", "b", "FAILED_PRECONDITION"),
        ("a", "a", "b", ""),
        ("a", "b", "b", "FAILED_PRECONDITION"),
        ("b", "a", "b", ""),
        ("a", "c", "a", ""),
        ("a", "c", "b", "FAILED_PRECONDITION"),
    ],
)
def test_the_expected_target(tmp_path: Path, present: str, expected: str, target: str, code: str) -> None:
    async def scenario(face: MeshFace) -> None:
        if present:
            await face.call("setVModel", vModelId="v", targetModelId=present, modelInfo=info(present))
        fields = {"vModelId": "v", "targetModelId": target, "modelInfo": info(target)}
        if code:
            assert (await face.refused("setVModel", expectedTargetModelId=expected, **fields))[0] == code
            left = await face.call("getVModelStatus", vModelId="v")
            assert left.targetModelId == present
            assert (await face.call("getModelStatus", modelId=target)).status == Status.NOT_FOUND
        else:
            answer = await face.call("setVModel", expectedTargetModelId=expected, **fields)
            assert answer.targetModelId == target

    played(tmp_path, scenario)


@pytest.mark.parametrize("owned", ["", "ann"])
@pytest.mark.parametrize("asked", ["", "ann", "bob"])
def test_owners(tmp_path: Path, owned: str, asked: str) -> None:
    async def scenario(face: MeshFace) -> None:
        fields = {"vModelId": "v", "targetModelId": "a", "modelInfo": info()}
        await face.call("setVModel", owner=owned, **fields)
        mine = asked in ("", owned)
        if mine:
            assert (await face.call("setVModel", owner=asked, **fields)).owner == owned
        else:
            assert (await face.refused("setVModel", owner=asked, **fields))[0] == "ALREADY_EXISTS"
        seen = await face.call("getVModelStatus", vModelId="v", owner=asked)
        assert seen.status == (VStatus.DEFINED if mine else VStatus.NOT_FOUND)
        await face.call("deleteVModel", vModelId="v", owner=asked)
        left = await face.call("getVModelStatus", vModelId="v")
        assert left.status == (VStatus.NOT_FOUND if mine else VStatus.DEFINED)

    played(tmp_path, scenario)


def test_a_transition_is_waited_for_and_deletes_what_it_leaves(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        face.script["b"] = Artefact(load_s=0.3)
        auto = {"autoDeleteTargetModel": True, "vModelId": "v"}
        await face.call("setVModel", targetModelId="a", modelInfo=info("a"), loadNow=True, sync=True, **auto)
        assert await face.infer("v", "mm-vmodel-id") == "a:x"
        begun = await face.call("setVModel", targetModelId="b", modelInfo=info("b"), **auto)
        assert (begun.status, begun.activeModelId, begun.targetModelId) == (VStatus.TRANSITIONING, "a", "b")
        assert begun.targetModelStatus.status == Status.LOADING
        assert await face.infer("v", "mm-vmodel-id") == "a:x"
        ended = await face.call("setVModel", targetModelId="b", modelInfo=info("b"), sync=True, **auto)
        assert (ended.status, ended.activeModelId) == (VStatus.DEFINED, "b")
        assert not ended.HasField("targetModelStatus")
        assert await face.infer("v", "mm-vmodel-id") == "b:x"
        assert (await face.call("getModelStatus", modelId="a")).status == Status.NOT_FOUND
        assert record(face, "b").references == 1
        await face.call("deleteVModel", vModelId="v")
        assert (await face.call("getModelStatus", modelId="b")).status == Status.NOT_FOUND

    played(tmp_path, scenario)


def test_a_failed_transition_is_told_and_can_be_taken_back(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        face.script["b"] = broken("the file is torn")
        await face.call("setVModel", vModelId="v", targetModelId="a", modelInfo=info("a"), loadNow=True)
        await face.infer("v", "mm-vmodel-id")
        target = {"vModelId": "v", "targetModelId": "b"}
        failed = await face.call("setVModel", modelInfo=info("b"), sync=True, **target)
        for reply in (failed, await face.call("getVModelStatus", vModelId="v")):
            assert (reply.status, reply.activeModelId) == (VStatus.TRANSITION_FAILED, "a")
            assert reply.activeModelStatus.status == Status.LOADED
            assert reply.targetModelStatus.status == Status.LOADING_FAILED
            assert reply.targetModelStatus.errors[0].endswith("the file is torn")
        assert await face.infer("v", "mm-vmodel-id") == "a:x"
        back = await face.call("setVModel", vModelId="v", targetModelId="a")
        assert back.status == VStatus.DEFINED
        assert (record(face, "a").references, record(face, "b").references) == (1, 0)
        forced = await face.call("setVModel", force=True, **target)
        assert (forced.status, forced.activeModelId) == (VStatus.DEFINED, "b")
        assert (record(face, "a").references, record(face, "b").references) == (0, 1)

    played(tmp_path, scenario)


def test_a_target_is_as_recently_used_as_what_it_follows(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        now_ms = round(time.time() * 1000)
        await face.call("registerModel", modelId="a", modelInfo=info("a"), lastUsedTime=now_ms - 50 * HOUR_MS)
        await face.call("setVModel", vModelId="v", targetModelId="a")
        await face.call("setVModel", vModelId="v", targetModelId="b", modelInfo=info("b"))
        assert record(face, "b").last_used_ms == now_ms - 50 * HOUR_MS
        await face.call("setVModel", vModelId="w", targetModelId="c", modelInfo=info("c"), loadNow=True)
        assert abs(record(face, "c").last_used_ms - (now_ms - HOUR_MS)) < 60_000

    played(tmp_path, scenario)


def test_a_vmodel_deleted_while_it_is_waited_for_is_not_found(tmp_path: Path) -> None:
    async def scenario(face: MeshFace) -> None:
        face.script["b"] = Artefact(load_s=5)
        await face.call("setVModel", vModelId="v", targetModelId="a", modelInfo=info("a"))
        await face.infer("v", "mm-vmodel-id")
        target = {"vModelId": "v", "targetModelId": "b", "modelInfo": info("b")}
        waiting = asyncio.create_task(face.call("setVModel", sync=True, **target))

        async def begun() -> bool:
            return (await face.call("getVModelStatus", vModelId="v")).status == VStatus.TRANSITIONING

        await until(begun)
        await face.call("deleteVModel", vModelId="v")
        assert await waiting == VStatus(status=VStatus.NOT_FOUND)

    played(tmp_path, scenario)


# --- a registry that is only read ---------------------------------------------------------------------------------


def test_a_read_only_registry_is_served_and_not_changed(tmp_path: Path) -> None:
    from modelmesh.store.memory import MemoryStore

    store = MemoryStore()

    async def before(face: MeshFace) -> None:
        await face.call("registerModel", modelId="m", modelInfo=info(), lastUsedTime=5)
        await face.call("setVModel", vModelId="v", targetModelId="m")

    async def scenario(face: MeshFace) -> None:
        kept = await store.revision()
        again = await face.call("registerModel", modelId="m", modelInfo=info(), loadNow=True, sync=True)
        assert again.status == Status.LOADED
        assert await face.infer("v", "mm-vmodel-id") == "m:x"
        for method, fields in (
            ("registerModel", {"modelId": "n", "modelInfo": info()}),
            ("unregisterModel", {"modelId": "m"}),
            ("setVModel", {"vModelId": "w", "targetModelId": "m"}),
            ("deleteVModel", {"vModelId": "v"}),
        ):
            assert (await face.refused(method, **fields))[0] == "FAILED_PRECONDITION"
        assert "read-only" in (await face.refused("registerModel", modelId="n", modelInfo=info()))[1]
        await face.call("unregisterModel", modelId="unknown")
        await face.call("setVModel", vModelId="v", targetModelId="m")
        await face.registrar.stop()
        assert await store.revision() == kept

    played(tmp_path, before, store=store)
    played(tmp_path, scenario, store=store, read_only=True)
