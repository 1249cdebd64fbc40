"""The gRPC faces of the control plane, called as the data plane calls them: over a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from modelmesh.management.server import ControlServer
from modelmesh.mesh.control import Registration
from modelmesh.testing.control import FakeControlPlane
from modelmesh.wire.generated import health_pb2, inference_pb2, reflection_pb2

OIP = "inference.GRPCInferenceService"


def served(tmp_path: Path, scenario: Callable[[grpc.aio.Channel, FakeControlPlane], Awaitable[None]]) -> None:
    """Run a scenario against a served fake, within ten seconds."""

    async def run() -> None:
        control = FakeControlPlane()
        server = ControlServer(tmp_path / "control.sock", 1 << 20)
        await server.start(control)
        try:
            async with grpc.aio.insecure_channel(f"unix:{tmp_path}/control.sock") as channel:
                await asyncio.wait_for(scenario(channel, control), 10)
        finally:
            await server.stop(0.1)
        assert not (tmp_path / "control.sock").exists()

    asyncio.run(run())


async def call(
    channel: grpc.aio.Channel, service: str, method: str, request: Any, answer: Any, **more: Any
) -> Any:
    rpc = channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    return await rpc(request, timeout=5, **more)


def test_server_calls(tmp_path: Path) -> None:
    async def scenario(channel: grpc.aio.Channel, control: FakeControlPlane) -> None:
        live = await call(
            channel, OIP, "ServerLive", inference_pb2.ServerLiveRequest(), inference_pb2.ServerLiveResponse
        )
        assert live.live
        for ready, draining, expected in [(True, False, True), (False, False, False), (True, True, False)]:
            control.ready, control.draining = ready, draining
            answer = await call(
                channel,
                OIP,
                "ServerReady",
                inference_pb2.ServerReadyRequest(),
                inference_pb2.ServerReadyResponse,
            )
            assert answer.ready is expected
        metadata = await call(
            channel,
            OIP,
            "ServerMetadata",
            inference_pb2.ServerMetadataRequest(),
            inference_pb2.ServerMetadataResponse,
        )
        assert metadata.name == "modelmesh"
        assert list(metadata.extensions) == ["model_repository"]

    served(tmp_path, scenario)


def test_model_ready_loads_nothing(tmp_path: Path) -> None:
    async def scenario(channel: grpc.aio.Channel, control: FakeControlPlane) -> None:
        await control.register(Registration("iris", "sklearn", "/m/iris"))
        await control.set_vmodel("iris:2", "iris")

        async def ready(name: str, version: str = "", **more: Any) -> bool:
            request = inference_pb2.ModelReadyRequest(name=name, version=version)
            answer = await call(channel, OIP, "ModelReady", request, inference_pb2.ModelReadyResponse, **more)
            return bool(answer.ready)

        assert await ready("iris")
        assert await ready("iris", "2")
        assert await ready("overruled", metadata=(("mm-model-id", "iris"),))
        assert control.loads_total == 0
        control.broken["iris"] = "It is not a pickle."
        with pytest.raises(Exception, match="not a pickle"):
            await control.load("iris")
        assert not await ready("iris")
        for name, code in [("none", grpc.StatusCode.NOT_FOUND), ("", grpc.StatusCode.INVALID_ARGUMENT)]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ready(name)
            assert caught.value.code() is code

    served(tmp_path, scenario)


def test_repository_calls(tmp_path: Path) -> None:
    async def scenario(channel: grpc.aio.Channel, control: FakeControlPlane) -> None:
        for number in range(1_200):
            await control.register(Registration(f"model-{number:04}", "sklearn", "/m"))
        await control.set_vmodel("named", "model-0000")
        await control.set_vmodel("named:7", "model-0000")
        control.broken["model-0001"] = "It is not a pickle."

        async def move(verb: str, name: str, **parameters: str) -> None:
            kind = getattr(inference_pb2, f"RepositoryModel{verb}Request")
            request = kind(model_name=name)
            for key, value in parameters.items():
                request.parameters[key].string_param = value
            answer = getattr(inference_pb2, f"RepositoryModel{verb}Response")
            await call(channel, OIP, f"RepositoryModel{verb}", request, answer)

        async def index(*, ready: bool) -> list[tuple[str, str, str, str]]:
            request = inference_pb2.RepositoryIndexRequest(ready=ready)
            answer = await call(
                channel, OIP, "RepositoryIndex", request, inference_pb2.RepositoryIndexResponse
            )
            return [(row.name, row.version, row.state, row.reason) for row in answer.models]

        await move("Load", "named")
        with pytest.raises(grpc.aio.AioRpcError, match="not a pickle") as caught:
            await move("Load", "model-0001")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError, match='"config" is not offered'):
            await move("Load", "named", config="{}")
        assert await index(ready=True) == [("named", "", "READY", ""), ("named", "7", "READY", "")]
        rows = await index(ready=False)
        assert len(rows) == 1_201
        assert rows[2] == ("model-0001", "", "UNAVAILABLE", "It is not a pickle.")
        assert rows[3] == ("model-0002", "", "UNAVAILABLE", "not loaded; the next request loads it")
        await move("Unload", "named")
        assert await index(ready=True) == []

    served(tmp_path, scenario)


def test_health_follows_readiness(tmp_path: Path) -> None:
    async def scenario(channel: grpc.aio.Channel, control: FakeControlPlane) -> None:
        kinds = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        answer = await call(channel, "grpc.health.v1.Health", "Check", kinds[0](service=OIP), kinds[1])
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "grpc.health.v1.Health", "Check", kinds[0](service="other"), kinds[1])
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        stream = watch(health_pb2.HealthCheckRequest(), timeout=5)
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
        control.draining = True
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stream.cancel()

    served(tmp_path, scenario)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_hands_out_the_protocol(tmp_path: Path, version: str) -> None:
    async def scenario(channel: grpc.aio.Channel, control: FakeControlPlane) -> None:
        info = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=OIP)
            yield reflection_pb2.ServerReflectionRequest(file_by_filename="none.proto")
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="mmesh.ModelMesh")

        services, file, nothing, mesh = [answer async for answer in info(requests(), timeout=5)]
        assert {each.name for each in services.list_services_response.service} == {
            OIP,
            "mmesh.ModelMesh",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        (described_mesh,) = mesh.file_descriptor_response.file_descriptor_proto
        assert FileDescriptorProto.FromString(described_mesh).service[0].name == "ModelMesh"
        described = FileDescriptorProto.FromString(file.file_descriptor_response.file_descriptor_proto[0])
        assert {method.name for method in described.service[0].method} >= {"ModelInfer", "RepositoryIndex"}
        assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]

    served(tmp_path, scenario)


def test_other_methods_are_not_offered(tmp_path: Path) -> None:
    async def scenario(channel: grpc.aio.Channel, control: FakeControlPlane) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(
                channel,
                "mmesh.ModelRuntime",
                "loadModel",
                inference_pb2.ServerLiveRequest(),
                inference_pb2.ServerLiveResponse,
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    served(tmp_path, scenario)
