"""Model servers that list their methods, and those that read the concrete model's id in the message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from relay_face import METHOD, TIMEOUT_S, Context, Face, relay_face, run

from modelmesh.dataplane.protocol import Fault, Name, NameKind, Replica, Target
from modelmesh.wire.generated import inference_pb2 as pb

INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
METHODS = {INFER[1:]: (1,), PREDICT[1:]: (1, 1), METHOD[1:]: (), "test.Echo/CallStream": (1,)}
LONG_ID = "x" * 100 + "@" + "y" * 100
Code = grpc.StatusCode


def infer_request(model: str, n_bytes: int = 10) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name=model, id="one", raw_input_contents=[bytes(n_bytes)])


async def until_nothing_is_held(face: Face) -> None:
    await face.until(lambda: face.plane.stats().parked_bytes == 0, "the end of what was held")


@pytest.mark.parametrize("concrete", ["m", LONG_ID])
@pytest.mark.parametrize("n_bytes", [10, 200_000, 3_000_000])
def test_the_model_server_reads_the_concrete_id(tmp_path: Path, concrete: str, n_bytes: int) -> None:
    asked, told = infer_request("iris", n_bytes), infer_request(concrete, n_bytes)

    async def test() -> None:
        async with relay_face(tmp_path, methods=METHODS, allow_any_method=False) as face:
            face.serve(concrete, Replica(1, 1), name="iris")
            twice = asked.SerializeToString() + pb.ModelInferRequest(model_name="other").SerializeToString()
            for message in (asked.SerializeToString(), twice):
                reply = await face.ask(method=INFER, message=message, headers=())
                assert reply.code == Code.OK, reply.details
                assert pb.ModelInferRequest.FromString(reply.message) == told
                assert b"other" not in reply.message
                assert reply.headers["mm-model-id"] == concrete
            assert [headers["mm-model-id"] for headers, _ in face.upstreams[0].requests] == [concrete] * 2
            await until_nothing_is_held(face)

    run(test())


def test_ids_are_spliced_into_wrappers_and_appended_where_there_is_none(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, methods=METHODS, allow_any_method=False) as face:
            face.serve("abc@1", Replica(1, 1), name="abc")
            for message, expected in (
                (b"\x0a\x05\x0a\x03abc\x12\x01x", b"\x0a\x07\x0a\x05abc@1\x12\x01x"),
                (b"\x12\x01x", b"\x12\x01x\x0a\x07\x0a\x05abc@1"),
                (b"", b"\x0a\x07\x0a\x05abc@1"),
            ):
                headers = (("mm-model-id", "abc"),)
                reply = await face.ask(method=PREDICT, message=message, headers=headers)
                assert (reply.code, reply.message) == (Code.OK, expected)

    run(test())


def test_compressed_messages_reach_the_model_server_with_the_id(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, methods=METHODS) as face:
            face.serve(LONG_ID, Replica(1, 1), name="iris")
            for n_bytes in (10, 2_000_000):
                reply = await face.ask(
                    method=INFER,
                    message=infer_request("iris", n_bytes).SerializeToString(),
                    headers=(("mm-model-id", "iris"),),
                    compression=grpc.Compression.Gzip,
                )
                assert reply.code == Code.OK, reply.details
                assert pb.ModelInferRequest.FromString(reply.message) == infer_request(LONG_ID, n_bytes)
            await until_nothing_is_held(face)

    run(test())


def test_every_message_of_a_stream_carries_the_id(tmp_path: Path) -> None:
    messages = [infer_request("iris", size).SerializeToString() for size in (1, 100_000, 20)]

    async def test() -> None:
        async with relay_face(tmp_path, methods=METHODS) as face:
            face.serve(LONG_ID, Replica(1, 1), name="iris")
            call = face.channel.stream_stream("/test.Echo/CallStream")(
                metadata=(("mm-model-id", "iris"),), timeout=TIMEOUT_S
            )
            # The answer to each comes before the next one is sent.
            for message, size in zip(messages, (1, 100_000, 20), strict=True):
                await call.write(message)
                answer: bytes = await call.read()  # type: ignore[assignment]
                assert pb.ModelInferRequest.FromString(answer) == infer_request(LONG_ID, size)
            await call.done_writing()
            assert await call.code() == Code.OK
            await until_nothing_is_held(face)

    run(test())


@pytest.mark.parametrize(
    ("methods", "allow_any_method", "codes"),
    [
        (METHODS, False, (Code.OK, Code.OK, Code.UNIMPLEMENTED)),
        (METHODS, True, (Code.OK, Code.OK, Code.OK)),
        ({}, False, (Code.OK, Code.OK, Code.OK)),
    ],
)
def test_methods_a_model_server_does_not_list_are_refused(
    tmp_path: Path, methods: dict[str, tuple[int, ...]], allow_any_method: bool, codes: Sequence[Code]
) -> None:
    message = infer_request("iris").SerializeToString()

    async def test() -> None:
        async with relay_face(tmp_path, methods=methods, allow_any_method=allow_any_method) as face:
            face.serve("iris@1", Replica(1, 1), name="iris")
            others = (METHOD, "/test.Echo/Other")
            replies = [await face.ask("iris", message, method=method) for method in (INFER, *others)]
            assert [reply.code for reply in replies] == list(codes)
            assert [reply.message for reply in replies[1:] if reply.code == Code.OK] == [message] * (
                codes.count(Code.OK) - 1
            )
            if not methods:
                assert replies[0].message == message
            for reply in replies:
                if reply.code != Code.OK:
                    assert "iris@1" in reply.details and "test.Echo/Other" in reply.details
            assert len(face.upstreams[0].requests) == codes.count(Code.OK)
            assert face.plane.stats().in_flight == 0

    run(test())


def test_malformed_messages_are_refused_before_the_model_server_hears_of_them(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, methods=METHODS) as face:
            face.serve("iris@1", Replica(1, 1), name="iris")
            for method, message in ((INFER, b"\x08\x01"), (PREDICT, b"\x0a\x05ab"), (INFER, b"\xff" * 40)):
                reply = await face.ask("iris", message, method=method)
                assert reply.code == Code.INVALID_ARGUMENT
                assert "iris@1" in reply.details and method[1:] in reply.details
            assert not face.upstreams[0].requests
            await until_nothing_is_held(face)
            await face.until(lambda: sum(row.in_flight for row in face.plane.take_usage()) == 0)

    run(test())


def test_large_messages_are_held_within_the_bound_of_what_is_parked(tmp_path: Path) -> None:
    """A message and its copy count, even beyond what is kept for replays."""
    allowed = asyncio.Event()

    async def serve(request: bytes, context: Context) -> bytes:
        await allowed.wait()
        return request[-1:]

    async def test() -> None:
        async with relay_face(tmp_path, methods=METHODS, parked_bytes_max=5_000_000) as face:
            face.serve("iris@1", Replica(1, 1), name="iris")
            face.upstreams[0].serve = serve
            fits, too_large = (infer_request("iris", n).SerializeToString() for n in (2_000_000, 3_000_000))
            reply = await face.ask("iris", too_large, method=INFER)
            assert reply.code == Code.RESOURCE_EXHAUSTED and "iris@1" in reply.details
            assert int(reply.trailers["grpc-retry-pushback-ms"]) > 0
            await until_nothing_is_held(face)
            # What the model server has got counts no more.
            asked = [face.ask("iris", fits, method=INFER)]
            for n in (1, 2, 3):
                await face.until(lambda n=n: face.upstreams[0].running == n)  # type: ignore[misc]
                await until_nothing_is_held(face)
                asked.append(face.ask("iris", fits, method=INFER))
            allowed.set()
            assert [reply.code for reply in await asyncio.gather(*asked)] == [Code.OK] * 4

    run(test())


def test_a_cold_model_and_a_lost_copy_change_nothing(tmp_path: Path) -> None:
    """What the client sent is spliced anew for each attempt, for whatever its name stands for by then."""

    async def test() -> None:
        async with relay_face(tmp_path, targets=2, methods=METHODS) as face:
            asked = face.ask("", infer_request("iris").SerializeToString(), method=INFER, headers=())
            await face.event(Fault)

            async def die(request: bytes, context: Context) -> bytes:
                assert pb.ModelInferRequest.FromString(request) == infer_request("iris@1")
                await face.upstreams[0].wire.cut()
                return b""

            face.upstreams[0].serve = die
            face.serve("iris@1", Replica(1, 1), name="iris")
            await face.event(Fault)
            # The next copy is in a model server that reads no id.
            plain = f"unix:{face.upstreams[1].wire.path}"
            face.plane.set_targets([Target(9, plain)], [])
            face.serve("iris@2", Replica(2, 2))
            face.plane.publish_names([(Name(kind, "iris"), "iris@2") for kind in NameKind])
            reply = await asked
            assert pb.ModelInferRequest.FromString(reply.message) == infer_request("iris@2")
            face.serve("iris@2", Replica(3, 9))
            reply = await face.ask("iris", infer_request("iris").SerializeToString(), method=INFER)
            assert pb.ModelInferRequest.FromString(reply.message) == infer_request("iris")

    run(test())


def test_a_client_that_leaves_while_its_message_is_held_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, methods=METHODS) as face:
            face.serve("iris@1", Replica(1, 1), name="iris")
            reader, writer = await asyncio.open_connection(*face.address.split(":"))
            writer.write(_half_a_request())
            await writer.drain()
            await face.until(lambda: face.plane.stats().parked_bytes == 1005, "half a message")
            assert sum(row.in_flight for row in face.plane.take_usage()) <= 1
            writer.close()
            await until_nothing_is_held(face)
            await face.until(lambda: face.plane.stats().in_flight == 0)
            assert not face.upstreams[0].requests
            await reader.read()

    run(test())


def _half_a_request() -> bytes:
    """An HTTP/2 connection with a ModelInfer of 2,000 bytes, of which 1,000 come."""

    def header(name: bytes, value: bytes) -> bytes:
        # A literal without indexing, RFC 7541, 6.2.2; all are shorter than 127 bytes.
        return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    headers = b"".join(
        header(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", INFER.encode()),
            (b":authority", b"test"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"mm-model-id", b"iris"),
        )
    )
    message = b"\x00" + (2000).to_bytes(4, "big") + bytes(1000)
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, b"")
        + frame(1, 4, 1, headers)
        + frame(0, 0, 1, message)
    )
