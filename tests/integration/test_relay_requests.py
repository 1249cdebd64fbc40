"""What passes through the relay, and what it refuses by itself."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from relay_face import METHOD, TIMEOUT_S, Context, echo, metadata, relay_face, run

from modelmesh.dataplane.protocol import Fault, Name, NameKind, Replica
from modelmesh.wire.generated import inference_pb2 as pb

INFER = "/inference.GRPCInferenceService/ModelInfer"
Code = grpc.StatusCode


def test_headers_and_trailers_pass_but_private_ones_do_not(tmp_path: Path) -> None:
    async def serve(request: bytes, context: Context) -> bytes:
        await context.send_initial_metadata((("x-head", "h"),))
        context.set_trailing_metadata(
            (("mm-execution-us", "1500"), ("x-trailer", "t"), ("x-bytes-bin", b"\x00"))
        )
        return request[::-1]

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris@1", Replica(7, 1), name="iris")
            face.upstreams[0].serve = serve
            headers = (
                ("mm-model-id", "iris"),
                ("mm-balanced", "true"),
                ("traceparent", "00-abc"),
                ("authorization", "Bearer x"),
                ("x-bytes-bin", b"\xff"),
            )
            reply = await face.ask(message=b"hello", headers=headers)
            assert (reply.code, reply.message) == (Code.OK, b"olleh")
            assert reply.headers["mm-model-id"] == "iris@1"
            assert reply.headers["x-head"] == "h"
            assert reply.trailers == {"x-trailer": "t", "x-bytes-bin": "\x00"}
            got, _ = face.upstreams[0].requests[0]
            assert got["mm-model-id"] == "iris@1"
            assert (got["traceparent"], got["authorization"], got["x-bytes-bin"]) == (
                "00-abc",
                "Bearer x",
                "\xff",
            )
            assert "mm-balanced" not in got
            (usage,) = face.plane.take_usage()
            assert (usage.model, usage.replica_id, usage.requests, usage.errors) == ("iris@1", 7, 1, 0)
            assert usage.execution_us == 1500

    run(test())


@pytest.mark.parametrize(
    ("signals_loss", "pass_credentials", "passed"),
    [(True, False, True), (False, False, False), (False, True, True)],
)
def test_credentials_pass_to_own_model_servers_or_where_the_config_says(
    tmp_path: Path, signals_loss: bool, pass_credentials: bool, passed: bool
) -> None:
    credentials = {"authorization": "Bearer b", "proxy-authorization": "Basic p", "cookie": "c=1"}

    async def test() -> None:
        async with relay_face(tmp_path, signals_loss=signals_loss, pass_credentials=pass_credentials) as face:
            face.serve("iris", Replica(1, 1))
            headers = (("mm-model-id", "iris"), ("x-mine", "stays"), *credentials.items())
            assert (await face.ask(headers=headers)).code == Code.OK
            seen, _ = face.upstreams[0].requests[0]
            assert seen["x-mine"] == "stays"
            assert {name: seen[name] for name in credentials if name in seen} == (
                credentials if passed else {}
            )

    run(test())


def test_errors_of_the_model_pass_with_their_details(tmp_path: Path) -> None:
    async def serve(request: bytes, context: Context) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", b"rich"),))
        await context.abort(Code.FAILED_PRECONDITION, "größer als 100 %")
        raise AssertionError("abort raises")

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(7, 1))
            face.upstreams[0].serve = serve
            reply = await face.ask()
            assert (reply.code, reply.details) == (Code.FAILED_PRECONDITION, "größer als 100 %")
            assert reply.trailers["grpc-status-details-bin"] == "rich"
            assert len(face.upstreams[0].requests) == 1
            assert face.plane.take_usage()[0].errors == 1

    run(test())


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ((("mm-model-id", "a"), ("tas-model-id", "z")), Name(NameKind.MODEL_FIRST, "a")),
        ((("mm-vmodel-id", "v"),), Name(NameKind.VMODEL, "v")),
        ((("mm-model-id-bin", "grün".encode()),), Name(NameKind.MODEL_FIRST, "grün")),
        ((("mm-vmodel-id-bin", b"v"),), Name(NameKind.VMODEL, "v")),
        ((("tas-model-id", "old"),), Name(NameKind.MODEL_FIRST, "old")),
    ],
)
def test_names_come_from_headers(
    tmp_path: Path, headers: tuple[tuple[str, str | bytes], ...], name: Name
) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            asked = face.ask(headers=headers)
            assert (await face.event(Fault)).name == name
            face.serve("grün@1", Replica(1, 1))
            face.plane.publish_names([(name, "grün@1")])
            assert (await asked).code == Code.OK
            got, _ = face.upstreams[0].requests[0]
            assert (
                base64.b64decode(base64.b64encode(got["mm-model-id-bin"].encode("latin-1"))).decode()
                == "grün@1"
            )
            assert "mm-model-id" not in got

    run(test())


@pytest.mark.parametrize(
    ("method", "message", "name"),
    [
        (INFER, pb.ModelInferRequest(model_name="iris").SerializeToString(), ("iris", "")),
        (
            INFER,
            pb.ModelInferRequest(model_name="iris", model_version="2", id="x").SerializeToString(),
            ("iris", "2"),
        ),
        (
            INFER,
            pb.ModelInferRequest(model_name="b", raw_input_contents=[b"0" * 200_000]).SerializeToString(),
            ("b", ""),
        ),
        ("/inference.GRPCInferenceService/ModelMetadata", b"\x0a\x01m\x12\x011", ("m", "1")),
        ("/tensorflow.serving.PredictionService/Predict", b"\x0a\x05\x0a\x03abc", ("abc", "")),
        ("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions", b"\x0a\x01t", ("t", "")),
    ],
)
@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_names_come_from_messages(
    tmp_path: Path, method: str, message: bytes, name: tuple[str, str], compression: grpc.Compression | None
) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            asked = face.ask(method=method, message=message, headers=(), compression=compression)
            assert (await face.event(Fault)).name == Name(NameKind.VMODEL_FIRST, *name)
            face.serve("m", Replica(1, 1))
            face.plane.publish_names([(Name(NameKind.VMODEL_FIRST, *name), "m")])
            reply = await asked
            assert (reply.code, reply.message) == (Code.OK, message)
            assert face.upstreams[0].requests[0][1] == message

    run(test())


@pytest.mark.parametrize(
    ("headers", "method", "message", "code"),
    [
        ((), METHOD, b"", Code.INVALID_ARGUMENT),
        ((("mm-model-id", ""),), METHOD, b"", Code.INVALID_ARGUMENT),
        ((("mm-model-id", "a"), ("mm-vmodel-id", "b")), METHOD, b"", Code.INVALID_ARGUMENT),
        ((("mm-model-id-bin", b"\xff\xfe"),), METHOD, b"", Code.INVALID_ARGUMENT),
        ((), INFER, b"", Code.INVALID_ARGUMENT),
        ((), INFER, b"\x0a\x00", Code.INVALID_ARGUMENT),
        ((), INFER, b"\x0a\x02\xff\xfe", Code.INVALID_ARGUMENT),
        ((), INFER, b"\x0a\x7fcut", Code.INVALID_ARGUMENT),
        ((), INFER, b"\x08\x01", Code.INVALID_ARGUMENT),
        ((("mm-model-id", "a"),), "/mmesh.ModelRuntime/unloadModel", b"", Code.UNIMPLEMENTED),
        ((), "/com.ibm.watson.tas.internal.proto.ModelServer/loadModel", b"", Code.UNIMPLEMENTED),
    ],
)
def test_what_names_no_model_is_refused(
    tmp_path: Path,
    headers: tuple[tuple[str, str | bytes], ...],
    method: str,
    message: bytes,
    code: grpc.StatusCode,
) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            reply = await face.ask(method=method, message=message, headers=headers)
            assert reply.code == code, reply
            assert code == Code.UNIMPLEMENTED or reply.details.endswith(".")
            assert not [event for event in face.plane.take_events() if isinstance(event, Fault)]
            assert not face.plane.histograms(), "early refusals are not observed"

    run(test())


@pytest.mark.parametrize(
    "method",
    [
        "/mmesh.ModelMesh/registerModel",
        "/com.ibm.watson.tas.proto.TasRuntime/addModel",
        "/grpc.health.v1.Health/Check",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ModelReady",
        "/inference.GRPCInferenceService/RepositoryIndex",
    ],
)
def test_control_methods_reach_the_control_plane_whole(tmp_path: Path, method: str) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            reply = await face.ask("iris", b"\x0a\x01x", method=method)
            assert (reply.code, reply.message) == (Code.OK, b"\x0a\x01x")
            got, _ = face.control.requests[0]
            assert got["mm-model-id"] == "iris"
            assert not face.upstreams[0].requests
            await face.control.wire.cut()
            reply = await face.ask(method=method)
            assert reply.code == Code.UNAVAILABLE
            await face.control.wire.mend()
            await face.until_code(Code.OK, lambda: face.ask(method=method))

    run(test())


def test_large_messages_pass_and_larger_ones_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, message_bytes_max=4 << 20) as face:
            face.serve("iris", Replica(1, 1))
            big = bytes(range(256)) * (4 << 12)
            reply = await face.ask(message=big)
            assert (reply.code, reply.message == big) == (Code.OK, True)
            reply = await face.ask(message=big + b"1")
            assert reply.code == Code.RESOURCE_EXHAUSTED
            assert str(4 << 20) in reply.details

            async def swell(request: bytes, context: Context) -> bytes:
                return big + b"1"

            face.upstreams[0].serve = swell
            reply = await face.ask()
            assert reply.code == Code.RESOURCE_EXHAUSTED
            assert "response" in reply.details
            face.upstreams[0].serve = echo
            assert (await face.ask()).code == Code.OK
            stats = face.plane.stats()
            assert (stats.kept_bytes, stats.parked_bytes) == (0, 0)

    run(test())


def test_too_many_headers_refuse_the_one_request(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, header_bytes_max=8192) as face:
            face.serve("iris", Replica(1, 1))
            before = face.plane.stats().counters["accepted"]
            fine = (("mm-model-id", "iris"), ("x-large", "x" * 6000))
            assert (await face.ask(headers=fine)).code == Code.OK
            reply = await face.ask(headers=(("mm-model-id", "iris"), ("x-large", "x" * 9000)))
            assert reply.code == Code.RESOURCE_EXHAUSTED
            assert "8192" in reply.details
            enormous = (("mm-model-id", "iris"), *((f"x-{n}", "x" * 8000) for n in range(20)))
            assert (await face.ask(headers=enormous)).code != Code.OK
            assert (await face.ask()).code == Code.OK
            assert face.plane.stats().counters["accepted"] <= before + 1, "the connection survived"

    run(test())


def test_deadlines_and_cancellations_reach_the_model(tmp_path: Path) -> None:
    async def test() -> None:
        left_s: list[float] = []
        begun = asyncio.Event()

        async def hang(request: bytes, context: Context) -> bytes:
            left_s.append(context.time_remaining() or 0.0)
            begun.set()
            await asyncio.sleep(TIMEOUT_S)
            return b""

        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            upstream = face.upstreams[0]
            upstream.serve = hang
            reply = await face.ask(timeout_s=0.3)
            assert reply.code == Code.DEADLINE_EXCEEDED
            assert 0 < left_s[0] < 0.4, "clients round up"
            await face.until(lambda: upstream.cancelled == 1, "the model server noticed")
            begun.clear()
            asked = face.ask()
            await begun.wait()
            assert face.plane.stats().in_flight == 1
            asked.cancel()
            await face.until(lambda: upstream.cancelled == 2, "the model server noticed")
            await face.until(lambda: face.plane.stats().in_flight == 0)
            assert face.plane.take_usage()[0].in_flight == 0
            assert face.plane.stats().counters["cancelled"] >= 1

    run(test())


def test_the_relay_keeps_the_deadline_when_nobody_else_does(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            # The timeout as a plain header: this client itself waits for long.
            headers = (("mm-model-id", "iris"),)
            call = face.channel.unary_unary(METHOD)(b"", timeout=0.2, metadata=headers)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == Code.DEADLINE_EXCEEDED
            await face.until(lambda: face.plane.stats().in_flight == 0)

    run(test())


def test_streams_pass_both_ways(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            call = face.channel.stream_stream("/test.Echo/Stream")(
                metadata=(("mm-model-id", "iris"),), timeout=TIMEOUT_S
            )
            for n in range(50):
                message = str(n).encode() * (n * 100 + 1)
                await call.write(message)
                assert await call.read() == message
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() == Code.OK
            assert metadata(await call.initial_metadata())["mm-model-id"] == "iris"

            async def requests() -> AsyncIterator[bytes]:
                for n in range(3):
                    yield pb.ModelInferRequest(model_name="iris", id=str(n)).SerializeToString()

            stream = face.channel.stream_stream("/inference.GRPCInferenceService/ModelInferStream")
            answers = [answer async for answer in stream(requests(), metadata=(("mm-model-id", "iris"),))]
            assert [pb.ModelInferRequest.FromString(answer).id for answer in answers] == ["0", "1", "2"]
            cancelled = face.channel.stream_stream("/test.Echo/Stream")(metadata=(("mm-model-id", "iris"),))
            await cancelled.write(b"1")
            assert await cancelled.read() == b"1"
            cancelled.cancel()
            await face.until(lambda: face.plane.stats().in_flight == 0)

    run(test())


def test_histograms_have_the_predecessors_names_and_buckets(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            asked = face.ask(message=b"x" * 300)
            await face.event(Fault)
            await asyncio.sleep(0.05)  # longer than the 10 ms from which on it is a miss
            face.serve("iris", Replica(1, 1))
            assert (await asked).code == Code.OK
            rows = {row.metric: row for row in face.plane.histograms()}
            assert set(rows) == {
                "modelmesh_api_request_milliseconds",
                "modelmesh_invoke_model_milliseconds",
                "modelmesh_request_size_bytes",
                "modelmesh_response_size_bytes",
                "modelmesh_cache_miss_milliseconds",
            }
            assert all(sum(row.counts) == 1 for row in rows.values())
            size = rows["modelmesh_request_size_bytes"]
            assert (size.method, size.sum, len(size.counts), size.counts[1]) == ("test.Echo/Call", 300, 9, 1)
            assert len(rows["modelmesh_api_request_milliseconds"].counts) == 20
            miss = rows["modelmesh_cache_miss_milliseconds"]
            assert (miss.method, miss.sum >= 50) == ("", True)

    run(test())
