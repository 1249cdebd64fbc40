"""What the relay counts per model and while requests queue, what it tells of headers, and connections that grow old."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from relay_face import CLIENT_OPTIONS, Context, relay_face, run

from modelmesh.dataplane.protocol import DataPlaneConfig, Fault, Name, NameKind, Replica
from modelmesh.dataplane.relay import Relay
from modelmesh.errors import Code, SettingsError

API, INVOKE = "modelmesh_api_request_milliseconds", "modelmesh_invoke_model_milliseconds"
QUEUED = "modelmesh_req_queue_delay_milliseconds"


def counted(plane: Relay, metric: str) -> dict[tuple[str, str, Code], int]:
    rows = (row for row in plane.histograms() if row.metric == metric)
    return {(row.model, row.vmodel, row.code): sum(row.counts) for row in rows}


def test_series_per_model_are_bounded_and_names_of_nothing_have_none(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, model_series_max=2) as face:
            for at, model in enumerate(("a@1", "b@1", "c@1")):
                face.serve(model, Replica(at + 1, 1), name=model[0])
                assert (await face.ask(model[0])).code == grpc.StatusCode.OK
            nothing = Name(NameKind.MODEL_FIRST, "nothing")
            face.plane.refuse_name(nothing, Code.NOT_FOUND, "none", -1, 1000)
            assert (await face.ask("nothing")).code == grpc.StatusCode.NOT_FOUND
            await face.until(lambda: face.plane.stats().in_flight == 0)
            served = {("a@1", "a", Code.OK): 1, ("b@1", "b", Code.OK): 1, ("other", "", Code.OK): 1}
            assert counted(face.plane, INVOKE) == served
            assert counted(face.plane, API) == {**served, ("", "", Code.NOT_FOUND): 1}

    run(test())


def test_sizes_fall_into_the_predecessors_buckets(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            for size in (*[128] * 30, *[1 << 20] * 10):
                await face.ask(message=b"x" * size)
            await face.until(lambda: face.plane.stats().in_flight == 0)
            for metric in ("modelmesh_request_size_bytes", "modelmesh_response_size_bytes"):
                (row,) = (row for row in face.plane.histograms() if row.metric == metric)
                assert list(row.counts) == [30, 0, 0, 0, 0, 0, 0, 10, 0]
                assert row.sum == 30 * 128 + 10 * (1 << 20)

    run(test())


def test_there_are_none_per_model_unless_they_are_wanted(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("a@1", Replica(1, 1), name="a")
            await face.ask("a")
            await face.until(lambda: face.plane.stats().in_flight == 0)
            assert counted(face.plane, API) == counted(face.plane, INVOKE) == {("", "", Code.OK): 1}

    run(test())


def test_waits_at_a_gate_are_observed(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            door = asyncio.Event()

            async def serve(request: bytes, context: Context) -> bytes:
                await door.wait()
                return request

            face.upstreams[0].serve = serve
            face.serve("iris", Replica(1, 1, max_concurrency=1))
            asked = [face.ask() for _ in range(3)]
            await face.until(lambda: face.plane.stats().in_flight == 3 and face.upstreams[0].running == 1)
            door.set()
            await asyncio.gather(*asked)
            await face.until(lambda: face.plane.stats().in_flight == 0)
            assert counted(face.plane, QUEUED) == {("", "", Code.OK): 2}

    run(test())


def test_faults_tell_the_wanted_headers_of_the_first_request(tmp_path: Path) -> None:
    async def test() -> None:
        told = (("x-request-id", "request"), ("who-bin", "who"), ("x-missing", "missing"))
        async with relay_face(tmp_path, told_headers=told) as face:
            headers: tuple[tuple[str, str | bytes], ...] = (
                ("mm-model-id", "iris"),
                ("x-request-id", "an earlier value"),
                ("x-request-id", "x" * 1000),
                ("who-bin", "Zoë".encode()),
                ("x-secret", "not told"),
            )
            asked = face.ask(headers=headers)
            fault = await face.event(Fault)
            assert dict(fault.told) == {"request": "x" * 256, "who": "Zoë"}
            face.serve("iris", Replica(1, 1))
            await asked

    run(test())


def test_headers_nobody_can_send_are_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match=r'^"no header" is not the name of a header\.$'):
        Relay(DataPlaneConfig("/nowhere", told_headers=(("no header", "x"),)))


def test_an_old_connection_ends_when_its_calls_are_done(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, connection_age_ms=200) as face:
            door = asyncio.Event()

            async def serve(request: bytes, context: Context) -> bytes:
                await door.wait()
                return request

            face.upstreams[0].serve = serve
            face.serve("iris", Replica(1, 1))
            asked = [face.ask()]
            await face.until(lambda: face.plane.stats().counters["aged"] == 1)
            # Once the client has heard of it, later calls take a new connection; the calls of the first are not harmed.
            while face.plane.stats().connections < 2:
                asked.append(face.ask())
                await asyncio.sleep(0.02)
            door.set()
            assert {reply.code for reply in await asyncio.gather(*asked)} == {grpc.StatusCode.OK}

    run(test())


def test_a_call_that_outlives_the_grace_is_cut(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, connection_age_ms=50, connection_age_grace_ms=50) as face:

            async def serve(request: bytes, context: Context) -> bytes:
                return await asyncio.get_running_loop().create_future()

            face.upstreams[0].serve = serve
            face.serve("iris", Replica(1, 1))
            async with grpc.aio.insecure_channel(face.address, options=CLIENT_OPTIONS) as channel:
                reply = await face.ask(channel=channel)
            assert reply.code == grpc.StatusCode.UNAVAILABLE
            await face.until(lambda: face.upstreams[0].cancelled == 1)

    run(test())
