"""Requests sent on to another instance: what it is told, what it answers, and what its port takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from relay_face import CLIENT_OPTIONS, METHOD, Context, Doors, Face, echo, relay_face, run

from modelmesh.dataplane.protocol import (
    Fault,
    MethodRule,
    Name,
    NameKind,
    NotHere,
    Replica,
    Route,
    Target,
    TargetLost,
)
from modelmesh.wire.generated import inference_pb2 as pb

Code = grpc.StatusCode
THERE = 101
"""The target that is the other instance."""
IRIS = Replica(1000, THERE)


@asynccontextmanager
async def two(
    folder: Path, there_has: dict[str, Any] | None = None, **config: Any
) -> AsyncIterator[tuple[Face, Face]]:
    """An instance that clients ask, and another one whose peer port it knows as a target."""
    for name in ("here", "there"):
        (folder / name).mkdir()
    async with (
        relay_face(folder / "there", peer_port=0, **(there_has or {})) as there,
        relay_face(folder / "here", peer_port=0, **config) as here,
    ):
        here.plane.set_targets([Target(THERE, there.peer, peer=True)], [])
        yield here, there


def sent_on(face: Face) -> tuple[int, int]:
    counters = face.plane.stats().counters
    return counters["to_peers"], counters["from_peers"]


def test_a_copy_elsewhere_serves(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path, {"connection_age_ms": 50}) as (here, there):
            here.serve("iris-1", IRIS, name="iris")
            there.serve("iris-1", Replica(1, 1))
            headers = (
                ("mm-vmodel-id", "iris"),
                ("traceparent", "00-1-2-01"),
                ("authorization", "Bearer x"),
                ("mm-peer", "a liar"),
                ("mm-reloaded", "1"),
                ("mm-not-here", "1"),
            )
            for size in (10, 3_000_000):
                reply = await here.ask(message=b"x" * size, headers=headers, timeout_s=9.0)
                assert (reply.code, len(reply.message)) == (Code.OK, size)
                assert reply.headers["mm-model-id"] == "iris-1"
                got, _ = there.upstreams[0].requests.pop()
                assert (got["mm-model-id"], got["traceparent"]) == ("iris-1", "00-1-2-01")
                assert got["authorization"] == "Bearer x", "to what signals loss, as without a hop"
                assert not {"mm-peer", "mm-vmodel-id", "mm-reloaded", "mm-not-here"} & got.keys()
            assert (sent_on(here), sent_on(there)) == ((2, 0), (0, 2))
            assert there.plane.stats().counters["requests"] == 0, "it is the client's request here, not there"
            (row,) = there.plane.take_usage()
            assert (row.model, row.requests, row.in_flight) == ("iris-1", 2, 0)
            seen = {row.metric for row in there.plane.histograms()}
            assert seen == {"modelmesh_invoke_model_milliseconds"}
            seen = {row.metric for row in here.plane.histograms()}
            assert "modelmesh_api_request_milliseconds" in seen
            assert "modelmesh_invoke_model_milliseconds" not in seen

    run(test())


def test_the_other_hears_what_was_asked_for(tmp_path: Path) -> None:
    """Its series are those of the vmodel; ids that are no ASCII travel too."""

    async def test() -> None:
        async with two(tmp_path, {"model_series_max": 8}) as (here, there):
            here.serve("größe-1", IRIS, name="größe")
            there.serve("größe-1", Replica(1, 1))
            reply = await here.ask(headers=(("mm-vmodel-id-bin", "größe".encode()),))
            assert reply.code == Code.OK
            asked = {(row.model, row.vmodel) for row in there.plane.histograms()}
            assert asked == {("größe-1", "größe")}

    run(test())


def test_payload_processors_hear_of_it_where_the_client_called(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            for face in (here, there):
                face.plane.set_payload_filters([("", "")], 9, 1 << 20)
            assert (await here.ask()).code == Code.OK
            heard = [await asyncio.to_thread(here.plane.take_payload, 5_000) for _ in range(2)]
            assert [payload.data for payload in heard if payload] == [b"hello", b"hello"]
            assert there.plane.take_payload(0) is None

    run(test())


def test_parts_of_a_request_go_where_their_models_are(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris", IRIS)
            here.serve("rose", Replica(1, 1))
            there.serve("iris", Replica(1, 1))
            for face, said in ((here, b"here "), (there, b"there ")):
                face.upstreams[0].serve = lambda request, context, said=said: asyncio.sleep(0, said)
            reply = await here.ask(headers=(("mm-model-id", "rose"), ("mm-model-id", "iris")))
            assert (reply.code, reply.message) == (Code.OK, b"here there ")

    run(test())


def test_a_call_over_rest_goes_there_too(tmp_path: Path) -> None:
    async def infer(request: bytes, context: Context) -> bytes:
        asked = pb.ModelInferRequest.FromString(request)
        answer = pb.ModelInferResponse(model_name="iris-1", id=asked.id)
        answer.outputs.add(name="y", datatype="INT64", shape=[1]).contents.int64_contents.append(7)
        return answer.SerializeToString()

    async def test() -> None:
        async with two(tmp_path, rest_port=0) as (here, there):
            here.serve("iris-1", IRIS, name="iris")
            there.serve("iris-1", Replica(1, 1))
            there.upstreams[0].serve = infer
            body = {"id": "a", "inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [1]}]}
            async with httpx.AsyncClient(base_url=f"http://{here.rest}") as client:
                answer = await client.post("/v2/models/iris/infer", json=body)
            assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [7]
            assert answer.headers["mm-model-id"] == "iris-1"
            got, _ = there.upstreams[0].requests.pop()
            assert got["mm-model-id"] == "iris-1"

    run(test())


def test_deadlines_and_cancellation_reach_the_other(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            left: list[float] = []

            async def hang(request: bytes, context: Context) -> bytes:
                left.append(context.time_remaining())
                await asyncio.Event().wait()
                raise AssertionError("it hangs")

            there.upstreams[0].serve = hang
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            assert (await here.ask(timeout_s=0.3)).code == Code.DEADLINE_EXCEEDED
            assert left[0] <= 0.3
            asked = here.ask(timeout_s=50.0)
            await there.until(lambda: there.upstreams[0].running == 1)
            asked.cancel()
            await there.until(lambda: there.upstreams[0].running == 0)
            await there.until(lambda: there.plane.stats().in_flight == 0)

    run(test())


def test_streams_go_through_both_ways(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            call = here.channel.stream_stream("/test.Echo/Stream")(metadata=(("mm-model-id", "iris"),))
            for message in (b"one", b"two"):
                await call.write(message)
                assert await call.read() == message
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    run(test())


def test_what_is_not_there_parks_here(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris", IRIS)
            asked = [here.ask(message=b"x" * 100_000) for _ in range(4)]
            assert await here.event(NotHere) == NotHere("iris", IRIS.id)
            fault = await here.event(Fault, model="iris")
            assert fault.name.name == "iris"
            await here.until(lambda: here.plane.stats().parked_requests == 4)
            assert there.plane.take_events() == [], "nothing is loaded, and nobody waits, there"
            assert not there.upstreams[0].requests
            here.plane.publish([Route("iris", (Replica(1, 1),))])
            assert {reply.code for reply in await asyncio.gather(*asked)} == {Code.OK}
            assert 1 <= here.plane.stats().counters["not_here"] <= 4, "who comes later parks at once"

    run(test())


def test_a_request_hops_once(tmp_path: Path) -> None:
    """Two instances that each believe the other to hold a model answer "not here" instead of sending it to and fro."""

    async def test() -> None:
        async with two(tmp_path) as (here, there):
            there.plane.set_targets([Target(THERE, here.peer, peer=True)], [])
            here.serve("iris", IRIS)
            there.serve("iris", Replica(2000, THERE))
            asked = here.ask()
            await here.event(NotHere)
            assert sent_on(there) == (0, 1)
            asked.cancel()

    run(test())


def test_a_retiring_copy_is_not_here(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            doors = Doors()
            there.upstreams[0].serve = doors.serve
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            first = here.ask()
            await there.until(lambda: there.upstreams[0].running == 1)
            there.plane.retire([(1, 7)], 60_000)
            second = here.ask()
            await here.event(NotHere, replica_id=IRIS.id)
            there.upstreams[0].serve = echo
            await doors.let_out(there)
            assert (await first).code == Code.OK, "what runs ends"
            there.plane.publish([Route("iris", (Replica(1, 1),))])
            here.plane.publish([Route("iris", (Replica(1001, THERE),))])
            assert (await second).code == Code.OK, "a revived copy serves again"

    run(test())


def test_who_waits_for_a_slot_there_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1, max_concurrency=1))
            replies = await asyncio.gather(*(here.ask() for _ in range(20)))
            assert {reply.code for reply in replies} == {Code.OK}
            assert there.upstreams[0].running_max == 1

    run(test())


def test_large_requests_that_wait_there_hold_nobody_up(tmp_path: Path) -> None:
    """All of a loop's requests share a connection: what waits for a slot at its end must not use up its window."""

    async def test() -> None:
        async with two(tmp_path, threads=1) as (here, there):
            release = asyncio.Event()

            async def wait(request: bytes, context: Context) -> bytes:
                await release.wait()
                return request[:1]

            there.upstreams[0].serve = wait
            here.serve("large", IRIS)
            there.serve("large", Replica(1, 1, max_concurrency=1))
            large = [here.ask("large", message=b"x" * 2_000_000) for _ in range(30)]
            await here.until(lambda: sent_on(here)[0] == 30)
            there.upstreams[0].serve = echo
            here.serve("small", Replica(1001, THERE))
            there.serve("small", Replica(2, 1))
            async with grpc.aio.insecure_channel(here.address, options=CLIENT_OPTIONS) as channel:
                for _ in range(20):
                    assert (await here.ask("small", timeout_s=5.0, channel=channel)).code == Code.OK
            release.set()
            assert {(reply.code, reply.message[:1]) for reply in await asyncio.gather(*large)} == {
                (Code.OK, b"x")
            }

    run(test())


def test_a_copy_here_is_preferred_until_it_is_busy(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris", Replica(1, 1), *(Replica(1000 + n, THERE) for n in range(6)))
            there.serve("iris", Replica(1, 1))
            for _ in range(40):
                assert (await here.ask()).code == Code.OK
            assert sent_on(here) == (0, 0)

            async def hang(request: bytes, context: Context) -> bytes:
                await asyncio.Event().wait()
                raise AssertionError("it hangs")

            here.upstreams[0].serve = hang
            hanging = here.ask()
            await here.until(lambda: here.upstreams[0].running == 1)
            for _ in range(8):
                assert (await here.ask()).code == Code.OK, "the others are idle"
            assert sent_on(here) == (8, 0)
            hanging.cancel()

    run(test())


def test_a_dead_instance_costs_only_time(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "other").mkdir()
        async with two(tmp_path) as (here, there):

            async def hang(request: bytes, context: Context) -> bytes:
                await asyncio.Event().wait()
                raise AssertionError("it hangs")

            there.upstreams[0].serve = hang
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            asked = [here.ask(message=b"x" * 100_000) for _ in range(8)]
            await there.until(lambda: there.upstreams[0].running == 8)
            await asyncio.to_thread(there.plane.stop)
            await here.event(TargetLost, target_id=THERE)
            await here.until(lambda: here.plane.stats().parked_requests == 8)
            here.plane.publish([Route("iris", (Replica(1, 1),))])
            assert {reply.code for reply in await asyncio.gather(*asked)} == {Code.OK}
            assert here.plane.stats().counters["replays"] == 8

    run(test())


def test_a_worker_lost_there_is_not_here(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):

            async def hang(request: bytes, context: Context) -> bytes:
                await asyncio.Event().wait()
                raise AssertionError("it hangs")

            there.upstreams[0].serve = hang
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            asked = here.ask()
            await there.until(lambda: there.upstreams[0].running == 1)
            await there.upstreams[0].wire.cut()
            await here.event(NotHere, replica_id=IRIS.id)
            here.plane.publish([Route("iris", (Replica(1, 1),))])
            assert (await asked).code == Code.OK

    run(test())


def test_a_model_server_that_says_not_found_is_believed_the_second_time(tmp_path: Path) -> None:
    """Once per request, however many instances it passes."""

    async def test() -> None:
        async with two(tmp_path, {"signals_loss": False}) as (here, there):

            async def not_found(request: bytes, context: Context) -> bytes:
                await context.abort(Code.NOT_FOUND, "no such row")
                raise AssertionError("abort raises")

            there.upstreams[0].serve = not_found
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            asked = here.ask()
            await there.event(NotHere, replica_id=1)
            await here.event(NotHere, replica_id=IRIS.id)
            there.plane.publish([Route("iris", (Replica(2, 1),))])
            here.plane.publish([Route("iris", (Replica(1001, THERE),))])
            reply = await asked
            assert (reply.code, reply.details) == (Code.NOT_FOUND, "no such row")
            assert len(there.upstreams[0].requests) == 2

    run(test())


def test_the_config_of_methods_is_judged_where_the_client_calls(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            there.plane.set_method_rules([MethodRule("other.Service/Method")], False)
            assert (await here.ask()).code == Code.OK

    run(test())


@pytest.mark.parametrize(
    "method", [METHOD, "/mmesh.ModelMesh/registerModel", "/mmesh.ModelRuntime/loadModel"]
)
def test_the_peer_port_is_not_for_clients(tmp_path: Path, method: str) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, peer_port=0) as face:
            face.serve("iris", Replica(1, 1))
            async with grpc.aio.insecure_channel(face.peer, options=CLIENT_OPTIONS) as channel:
                reply = await face.ask(method=method, channel=channel)
            assert (reply.code, reply.details) == (
                Code.UNIMPLEMENTED,
                "This port is for other instances; call the gRPC port.",
            )
            assert not face.upstreams[0].requests and not face.control.requests

    run(test())


def test_the_peer_service_is_on_the_peer_port_only(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, peer_port=0) as face:
            method = "/modelmesh.peers.v1.Peers/Load"
            assert (await face.ask(method=method)).code == Code.UNIMPLEMENTED
            assert not face.control.requests
            async with grpc.aio.insecure_channel(face.peer, options=CLIENT_OPTIONS) as channel:
                reply = await face.ask(method=method, headers=(), channel=channel)
                assert (reply.code, reply.message) == (Code.OK, b"hello")
                call = channel.stream_stream("/modelmesh.peers.v1.Peers/FollowStream")()
                for message in (b"one", b"two"):
                    await call.write(message)
                    assert await call.read() == message
                assert face.plane.stats().in_flight == 0, "a drain does not wait for those who follow"
                call.cancel()
            assert not face.upstreams[0].requests

    run(test())


def test_a_draining_instance_serves_the_others_until_it_stops(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris", IRIS)
            here.serve("rose", Replica(1002, THERE))
            there.serve("iris", Replica(1, 1))
            assert (await here.ask()).code == Code.OK
            there.plane.drain(60_000)
            await there.until_code(Code.UNAVAILABLE, there.ask)
            assert (await here.ask()).code == Code.OK
            here.plane.set_targets([Target(THERE + 1, there.peer, peer=True)], [])
            here.plane.publish([Route("iris", (Replica(1001, THERE + 1),))])
            assert (await here.ask()).code == Code.OK, "over a new connection too"
            asked = here.ask("rose")
            assert await here.event(NotHere) == NotHere("rose", 1002)
            asked.cancel()

    run(test())


def test_a_drain_waits_for_what_others_sent(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            doors = Doors()
            there.upstreams[0].serve = doors.serve
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            asked = here.ask()
            await there.until(lambda: there.upstreams[0].running == 1)
            there.plane.drain(60_000)
            assert there.plane.stats().in_flight == 1
            await doors.let_out(there)
            assert (await asked).code == Code.OK
            await there.until(lambda: there.plane.stats().in_flight == 0)

    run(test())


def test_the_time_of_a_drain_is_over_for_the_others_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris", IRIS)
            there.serve("iris", Replica(1, 1))
            assert (await here.ask()).code == Code.OK
            there.plane.drain(100)
            await here.event(TargetLost, target_id=THERE)

    run(test())


def test_names_are_not_resolved_again_there(tmp_path: Path) -> None:
    async def test() -> None:
        async with two(tmp_path) as (here, there):
            here.serve("iris-2", IRIS, name="iris")
            there.plane.publish_names([(Name(kind, "iris"), "iris-1") for kind in NameKind])
            there.plane.publish([Route("iris-2", (Replica(1, 1),))])
            there.upstreams[0].serve = echo
            reply = await here.ask(headers=(("mm-vmodel-id", "iris"),))
            assert (reply.code, reply.headers["mm-model-id"]) == (Code.OK, "iris-2")

    run(test())
