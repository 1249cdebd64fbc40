"""Slots of replicas and targets: bounds, queues, and what happens to who queues."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from relay_face import Doors, relay_face, run

from modelmesh.dataplane.protocol import Fault, Queueing, Replica, Retired, Route, TargetLost

Code = grpc.StatusCode


def test_a_replica_never_has_more_than_its_slots_and_queues_by_deadline(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            doors = Doors()
            face.upstreams[0].serve = doors.serve
            face.serve("iris", Replica(1, 1, max_concurrency=1))
            asked = [face.ask(message=b"first")]
            await face.until(lambda: len(doors.waiting) == 1)
            for n, seconds in enumerate((19.0, 16.0, 18.0, 17.0)):
                asked.append(face.ask(message=str(seconds).encode(), timeout_s=seconds))
                await face.until(lambda n=n: face.plane.stats().in_flight == n + 2)
            await face.event(Queueing)
            order = [await doors.let_out(face) for _ in range(5)]
            assert order == [b"first", b"16.0", b"17.0", b"18.0", b"19.0"]
            assert {reply.code for reply in await asyncio.gather(*asked)} == {Code.OK}
            assert face.upstreams[0].running_max == 1

    run(test())


def test_many_clients_share_few_slots(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=2, max_concurrency=3, threads=4) as face:
            for upstream in face.upstreams:
                upstream.serve = lambda request, context: asyncio.sleep(0.001, request)
            for n in range(5):
                face.serve(f"m{n}", Replica(10 + n, 1, 2), Replica(20 + n, 2, 2))
            channels = [
                grpc.aio.insecure_channel(face.address, [("grpc.use_local_subchannel_pool", 1)])
                for _ in range(8)
            ]
            asked = [face.ask(f"m{n % 5}", str(n).encode(), channel=channels[n % 8]) for n in range(400)]
            replies = await asyncio.gather(*asked)
            assert [reply.message for reply in replies] == [str(n).encode() for n in range(400)]
            assert all(1 <= upstream.running_max <= 3 for upstream in face.upstreams)
            for channel in channels:
                await channel.close()

    run(test())


def test_large_requests_of_one_connection_take_turns(tmp_path: Path) -> None:
    """Those that wait are taken in: left on their connection, they would take the room that the one with a slot needs."""

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.upstreams[0].serve = lambda request, context: asyncio.sleep(0.001, request[:1])
            face.serve("iris", Replica(1, 1, max_concurrency=1))
            replies = await asyncio.gather(*(face.ask(message=b"x" * 2_000_000) for _ in range(30)))
            assert {(reply.code, reply.message) for reply in replies} == {(Code.OK, b"x")}
            assert face.plane.stats().parked_bytes == 0

    run(test())


def test_large_requests_that_wait_for_a_slot_are_bounded(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, parked_bytes_max=5_000_000) as face:
            doors = Doors()
            face.upstreams[0].serve = doors.serve
            face.serve("iris", Replica(1, 1, max_concurrency=1))
            asked = [face.ask(message=b"x" * 2_000_000) for _ in range(8)]
            await face.until(lambda: sum(task.done() for task in asked) == 5)
            for _ in range(3):
                await doors.let_out(face)
            replies = await asyncio.gather(*asked)
            refused = [reply for reply in replies if reply.code != Code.OK]
            assert {reply.code for reply in refused} == {Code.RESOURCE_EXHAUSTED} and len(refused) == 5
            assert "held in memory" in refused[0].details and "grpc-retry-pushback-ms" in refused[0].trailers
            await face.until(lambda: face.plane.stats().parked_bytes == 0)

    run(test())


def test_a_full_queue_refuses_with_pushback(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, gate_queue_max=2) as face:
            doors = Doors()
            face.upstreams[0].serve = doors.serve
            face.serve("iris", Replica(1, 1, max_concurrency=1))
            asked = [face.ask()]
            await face.until(lambda: len(doors.waiting) == 1)
            asked += [face.ask(), face.ask()]
            await face.until(lambda: face.plane.stats().in_flight == 3)
            queueing = await face.event(Queueing)
            assert (queueing.model, queueing.queued >= 1, queueing.oldest_ms >= 0) == ("iris", True, True)
            reply = await face.ask()
            assert reply.code == Code.RESOURCE_EXHAUSTED
            assert int(reply.trailers["grpc-retry-pushback-ms"]) > 0
            assert face.plane.stats().counters["gate_queue_full"] == 1
            asked[-1].cancel()
            await face.until(lambda: face.plane.stats().in_flight == 2)
            asked.append(face.ask())
            for _ in range(3):
                await doors.let_out(face)
            assert (await asked[-1]).code == Code.OK

    run(test())


def test_who_gives_up_in_the_queue_leaves_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            doors = Doors()
            face.upstreams[0].serve = doors.serve
            face.serve("iris", Replica(1, 1, max_concurrency=1))
            first = face.ask()
            await face.until(lambda: len(doors.waiting) == 1)
            hasty, patient = face.ask(timeout_s=0.2), face.ask()
            assert (await hasty).code == Code.DEADLINE_EXCEEDED
            await doors.let_out(face)
            await doors.let_out(face)
            assert [(await task).code for task in (first, patient)] == [Code.OK, Code.OK]

    run(test())


def test_a_cancelled_request_frees_its_slot(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            doors = Doors()
            face.upstreams[0].serve = doors.serve
            face.serve("iris", Replica(1, 1, max_concurrency=1))
            first = face.ask()
            await face.until(lambda: len(doors.waiting) == 1)
            second = face.ask(message=b"second")
            await face.event(Queueing)
            first.cancel()
            await face.until(lambda: len(doors.waiting) == 2)
            doors.waiting[1][1].set()
            assert (await second).message == b"second"

    run(test())


def test_what_queues_at_a_retired_or_lost_replica_parks(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=2) as face:
            doors = Doors()
            face.upstreams[0].serve = doors.serve
            face.serve("iris", Replica(1, 1, max_concurrency=1))
            first = face.ask()
            await face.until(lambda: len(doors.waiting) == 1)
            second = face.ask()
            await face.event(Queueing)
            face.plane.retire([(1, 77)], 20_000)
            await face.event(Fault, model="iris")
            face.plane.publish([Route("iris", (Replica(2, 2),))])
            assert (await second).code == Code.OK
            await doors.let_out(face)
            assert (await first).code == Code.OK
            assert await face.event(Retired) == Retired(1, 77, True)
            face.serve("iris", Replica(3, 1, max_concurrency=1))
            third = face.ask()
            await face.until(lambda: len(doors.waiting) == 1)
            fourth = face.ask()
            await face.event(Queueing)
            await face.upstreams[0].wire.cut()
            await face.event(TargetLost)
            await face.until(lambda: face.plane.stats().parked_requests == 2)
            face.plane.publish([Route("iris", (Replica(4, 2),))])
            assert [(await task).code for task in (third, fourth)] == [Code.OK, Code.OK]

    run(test())


def test_new_room_is_used_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=2) as face:
            doors = Doors()
            face.upstreams[0].serve = doors.serve
            face.serve("iris", Replica(1, 1, max_concurrency=1))
            asked = [face.ask() for _ in range(3)]
            await face.until(lambda: len(doors.waiting) == 1)
            await face.until(lambda: face.plane.stats().in_flight == 3)
            face.plane.publish([Route("iris", (Replica(1, 1, 1), Replica(2, 2)))])
            await face.until(lambda: sum(task.done() for task in asked) == 2)
            await doors.let_out(face)
            await asyncio.gather(*asked)

    run(test())


def test_parking_is_bounded_in_number_bytes_and_time(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(
            tmp_path, parked_requests_max=2, parked_bytes_max=100_000, park_timeout_ms=300
        ) as face:
            asked = [face.ask(), face.ask()]
            await face.until(lambda: face.plane.stats().parked_requests == 2)
            reply = await face.ask()
            assert reply.code == Code.RESOURCE_EXHAUSTED
            assert int(reply.trailers["grpc-retry-pushback-ms"]) > 0
            asked[0].cancel()
            await face.until(lambda: face.plane.stats().parked_requests == 1)
            assert (await face.ask(message=b"x" * 200_000)).code == Code.RESOURCE_EXHAUSTED
            endless = face.ask(timeout_s=None)
            reply = await endless
            assert reply.code == Code.DEADLINE_EXCEEDED
            assert "loaded" in reply.details
            asked[1].cancel()
            await face.until(lambda: face.plane.stats().parked_bytes == 0)
            assert face.plane.stats().counters["parking_full"] == 2

    run(test())
