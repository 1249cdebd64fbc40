"""What the data plane offers to payload processors, and that nothing waits for them."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import grpc
import pytest
from relay_face import METHOD, TIMEOUT_S, Context, Face, relay_face, run

from modelmesh.dataplane.protocol import Name, NameKind, Payload, Replica
from modelmesh.errors import Code

ALL = [("", "")]
BYTES_MAX = 1 << 20


async def take(face: Face, n: int = 2) -> list[Payload]:
    """The next ones; they come when a call has ended, which may be a moment after its client has the answer."""
    taken = []
    for _ in range(n):
        payload = await asyncio.to_thread(face.plane.take_payload, round(TIMEOUT_S * 1000))
        assert payload is not None
        taken.append(payload)
    assert face.plane.take_payload(0) is None
    return taken


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_a_call_is_offered_as_a_pair(tmp_path: Path, compression: Any) -> None:
    async def serve(request: bytes, context: Context) -> bytes:
        await context.send_initial_metadata((("x-served", "yes"),))
        return request[::-1]

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.upstreams[0].serve = serve
            face.serve("iris@1", Replica(1, 1), name="iris")
            face.plane.set_payload_filters(ALL, 9, BYTES_MAX)
            headers = (("mm-vmodel-id", "iris"), ("authorization", "Bearer x"), ("x-tag-bin", b"\xff"))
            body = b"large enough " * 20_000
            assert (await face.ask(message=body, headers=headers, compression=compression)).code.name == "OK"
            request, response = await take(face)
            assert request.id == response.id
            for payload in (request, response):
                assert (payload.model, payload.vmodel) == ("iris@1", "iris")
                assert payload.method == METHOD.lstrip("/")
            assert (request.code, request.kind, request.status) == (None, "request", "")
            assert (response.code, response.kind, response.status) == (Code.OK, "response", "OK")
            assert request.data == body and response.data == body[::-1]
            assert "authorization" not in request.metadata
            assert base64.b64decode(request.metadata["x-tag-bin"]) == b"\xff"
            assert response.metadata["x-served"] == "yes"

    run(test())


def test_failures_are_offered_with_their_code(tmp_path: Path) -> None:
    async def fail(request: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.DATA_LOSS, "gone", (("x-detail", "1"),))
        raise AssertionError

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.upstreams[0].serve = fail
            face.serve("iris", Replica(1, 1))
            face.plane.set_payload_filters(ALL, 9, BYTES_MAX)
            await face.ask(message=b"x")
            request, response = await take(face)
            assert request.data == b"x" and request.vmodel == ""
            assert (response.code, response.data, response.metadata) == (Code.DATA_LOSS, b"", {})
            name = Name(NameKind.MODEL_FIRST, "nobody")
            face.plane.refuse_name(name, Code.NOT_FOUND, "model not found", -1, 60_000)
            await face.ask("nobody")
            request, response = await take(face)
            assert (request.model, response.code) == ("nobody", Code.NOT_FOUND)

    run(test())


def test_only_what_a_filter_wants_is_offered_and_streams_are_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            for at, model in enumerate(("a", "b"), start=1):
                face.serve(model, Replica(at, 1))
            face.plane.set_payload_filters([("b", ""), ("", "test.Echo/Other")], 99, BYTES_MAX)
            await face.ask("a")
            stream = face.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
                iter([b""]), metadata=(("mm-model-id", "b"),), timeout=TIMEOUT_S
            )
            assert [answer async for answer in stream] == [b""]
            await face.ask("b", b"1")
            await face.ask("a", b"2", method="/test.Echo/Other")
            assert [payload.data for payload in await take(face, 4)] == [b"1", b"1", b"2", b"2"]
            face.plane.set_payload_filters([], 0, 0)
            await face.ask("b")
            assert face.plane.take_payload(50) is None

    run(test())


def test_what_nobody_takes_is_dropped_and_no_call_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            face.plane.set_payload_filters(ALL, 6, BYTES_MAX)
            replies = await asyncio.gather(*(face.ask(message=b"x" * 1000) for _ in range(100)))
            assert {reply.code.name for reply in replies} == {"OK"}
            await face.until(lambda: sum(counted(face).values()) == 200)
            assert counted(face) == {"payloads_offered": 6, "payloads_dropped": 194}
            await take(face, 6)
            huge = b"x" * (2 * BYTES_MAX)
            assert (await face.ask(message=huge)).message == huge
            await face.until(lambda: counted(face)["payloads_dropped"] == 196)

    run(test())


def counted(face: Face) -> dict[str, int]:
    counters = face.plane.stats().counters
    return {name: counters[name] for name in ("payloads_offered", "payloads_dropped")}
