"""Model servers die, forget, fail and refuse: what that costs clients."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import grpc
import pytest
from relay_face import CLIENT_OPTIONS, Context, Face, Serve, copy, echo, relay_face, run

from modelmesh.dataplane.protocol import Fault, NotHere, Replica, Route, Target, TargetBack, TargetLost

Code = grpc.StatusCode


async def hang(request: bytes, context: Context) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError("it hangs")


def fail(code: grpc.StatusCode, text: str, *trailers: tuple[str, str]) -> Serve:
    async def serve(request: bytes, context: Context) -> bytes:
        context.set_trailing_metadata(trailers)
        await context.abort(code, text)
        raise AssertionError("abort raises")

    return serve


async def hold(face: Face, n: int = 1) -> None:
    """Until the first upstream has this many requests in hand."""
    await face.until(lambda: face.upstreams[0].running == n, f"{n} running")


def test_a_killed_model_server_costs_only_time(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=2) as face:
            face.upstreams[0].serve = hang
            face.serve("iris", Replica(1, 1))
            asked = [face.ask(message=b"x" * 500_000) for _ in range(8)]
            await hold(face, 8)
            await face.upstreams[0].wire.cut()
            await face.event(TargetLost, target_id=1)
            await face.until(lambda: face.plane.stats().parked_requests == 8)
            face.plane.publish([Route("iris", (Replica(2, 2),))])
            replies = await asyncio.gather(*asked)
            assert [(reply.code, len(reply.message)) for reply in replies] == [(Code.OK, 500_000)] * 8
            stats = face.plane.stats()
            assert stats.counters["replays"] == 8
            assert (stats.kept_bytes, stats.parked_bytes, stats.parked_requests) == (0, 0, 0)
            usage = {row.replica_id: row for row in face.plane.take_usage()}
            assert (usage[1].errors, usage[2].errors) == (8, 0)

    run(test())


def test_a_target_that_is_back_serves_who_waits_without_a_new_route(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            assert (await face.ask()).code == Code.OK
            await face.upstreams[0].wire.cut()
            await face.event(TargetLost, target_id=1)
            asked = face.ask()
            await face.event(Fault, model="iris")
            await face.upstreams[0].wire.mend()
            await face.event(TargetBack, target_id=1)
            assert (await asked).code == Code.OK

    run(test())


def test_a_loop_that_reaches_a_target_later_than_another_serves_who_waits(tmp_path: Path) -> None:
    """The target is not lost meanwhile, so nobody is told that it is back."""
    open_to_all = asyncio.Event()

    async def test() -> None:
        passed: list[asyncio.StreamWriter] = []
        async with relay_face(tmp_path) as face, AsyncExitStack() as closing:
            behind = str(face.upstreams[0].wire.path)

            async def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if passed and not open_to_all.is_set():
                    writer.transport.abort()
                    return
                passed.append(writer)
                inner_reader, inner_writer = await asyncio.open_unix_connection(behind)
                passed.append(inner_writer)
                with suppress(OSError):
                    await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

            door = await asyncio.start_unix_server(admit, str(tmp_path / "door.sock"))
            closing.callback(door.close)
            face.plane.set_targets([Target(9, f"unix:{tmp_path}/door.sock")], [])
            face.serve("iris", Replica(1, 9))
            await face.until(lambda: len(passed) == 2, "the first loop's connection")
            channels = [
                await closing.enter_async_context(
                    grpc.aio.insecure_channel(face.address, options=CLIENT_OPTIONS)
                )
                for _ in range(16)
            ]
            asked = [face.ask(channel=channel) for channel in channels]

            def settled() -> bool:
                done = sum(reply.done() for reply in asked)
                return 0 < done < 16 == done + face.plane.stats().parked_requests

            await face.until(settled, "answers by one loop, waiting at the other")
            open_to_all.set()
            assert [(await reply).code for reply in asked] == [Code.OK] * 16
            face.plane.set_targets([], [9])
            for writer in passed:
                writer.transport.abort()
            await asyncio.sleep(0)

    run(test())


def test_a_target_that_never_answered_is_lost(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=1) as face:
            face.plane.set_targets([Target(9, f"unix:{tmp_path}/nobody.sock"), Target(10, "127.0.0.1:1")], [])
            face.serve("iris", Replica(1, 9), Replica(2, 10))
            asked = face.ask()
            await face.until(lambda: {TargetLost(9), TargetLost(10)} <= set(face.events))
            await face.event(Fault, model="iris")
            face.serve("iris", Replica(3, 1))
            assert (await asked).code == Code.OK

    run(test())


def test_what_is_not_kept_is_told_unavailable(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=2, kept_body_bytes_max=1000) as face:
            face.upstreams[0].serve = hang
            face.serve("iris", Replica(1, 1))
            large, small = face.ask(message=b"x" * 1001), face.ask(message=b"x" * 900)
            stream = face.channel.stream_stream("/test.Echo/Stream")(metadata=(("mm-model-id", "iris"),))
            await stream.write(b"1")
            await hold(face, 2)
            await face.until(lambda: len(face.upstreams[0].requests) == 3)
            await face.upstreams[0].wire.cut()
            reply = await large
            assert reply.code == Code.UNAVAILABLE
            assert "iris" in reply.details and reply.details.endswith("send the request again.")
            await face.event(Fault, model="iris")
            face.plane.publish([Route("iris", (Replica(2, 2),))])
            assert (await small).code == Code.OK
            stream.cancel()

    run(test())


def test_nothing_is_replayed_after_the_first_byte_of_a_response(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=2) as face:
            face.serve("iris", Replica(1, 1))
            stream = face.channel.stream_stream("/test.Echo/Stream")(metadata=(("mm-model-id", "iris"),))
            await stream.write(b"1")
            assert await stream.read() == b"1"
            await face.upstreams[0].wire.cut()
            assert await stream.code() == Code.UNAVAILABLE
            assert not face.upstreams[1].requests

    run(test())


def test_bodies_are_kept_only_while_there_is_room(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, kept_bytes_max=25_000) as face:
            face.upstreams[0].serve = hang
            face.serve("iris", Replica(1, 1))
            asked = [face.ask(message=b"x" * 10_000) for _ in range(4)]
            await hold(face, 4)
            assert face.plane.stats().kept_bytes <= 25_000
            await face.upstreams[0].wire.cut()
            await face.until(lambda: sum(task.done() for task in asked) == 2)
            assert {task.result().code for task in asked if task.done()} == {Code.UNAVAILABLE}
            await face.until(lambda: face.plane.stats().parked_requests == 2)
            for task in asked:
                task.cancel()
            await face.until(lambda: face.plane.stats().kept_bytes == 0)

    run(test())


@pytest.mark.parametrize("signals_loss", [True, False])
def test_a_model_that_is_not_here_is_loaded_again(tmp_path: Path, signals_loss: bool) -> None:
    forgot = (("mm-not-here", "1"),) if signals_loss else ()

    async def test() -> None:
        async with relay_face(tmp_path, signals_loss=signals_loss) as face:
            face.serve("iris", Replica(1, 1))
            face.upstreams[0].serve = fail(Code.NOT_FOUND, "gone", *forgot)
            asked = face.ask()
            assert await face.event(NotHere) == NotHere("iris", 1)
            await face.event(Fault, model="iris")
            face.upstreams[0].serve = echo
            face.plane.publish([Route("iris", (Replica(2, 1),))])
            reply = await asked
            assert (reply.code, reply.message) == (Code.OK, b"hello")

    run(test())


def test_a_stubborn_not_found_goes_to_the_client(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, signals_loss=False) as face:
            face.serve("iris", Replica(1, 1))
            face.upstreams[0].serve = fail(Code.NOT_FOUND, "no such input")
            asked = face.ask()
            await face.event(NotHere, replica_id=1)
            face.plane.publish([Route("iris", (Replica(2, 1),))])
            reply = await asked
            assert (reply.code, reply.details) == (Code.NOT_FOUND, "no such input")
            assert len(face.upstreams[0].requests) == 2

    run(test())


def test_a_not_found_of_a_server_that_signals_loss_is_the_models_own(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            face.upstreams[0].serve = fail(Code.NOT_FOUND, "no such input")
            reply = await face.ask()
            assert (reply.code, reply.details) == (Code.NOT_FOUND, "no such input")
            assert not [event for event in face.plane.take_events() if isinstance(event, NotHere)]

    run(test())


@pytest.mark.parametrize(
    ("code", "text", "lost"),
    [
        (Code.INVALID_ARGUMENT, "Model iris not found", True),
        (Code.INVALID_ARGUMENT, "Model input not found", False),
        (Code.UNAVAILABLE, "Request for unknown model: 'iris' is not found", True),
        (Code.UNAVAILABLE, "Request for unknown model: 'other' is not found", False),
    ],
)
def test_legacy_texts_count_only_with_the_id(
    tmp_path: Path, code: grpc.StatusCode, text: str, lost: bool
) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, signals_loss=False) as face:
            face.serve("iris", Replica(1, 1))
            face.upstreams[0].serve = fail(code, text)
            asked = face.ask()
            if lost:
                await face.event(NotHere, replica_id=1)
                face.upstreams[0].serve = echo
                face.plane.publish([Route("iris", (Replica(2, 1),))])
                assert (await asked).code == Code.OK
            else:
                reply = await asked
                assert (reply.code, reply.details) == (code, text)

    run(test())


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED])
def test_another_copy_does_better(tmp_path: Path, code: grpc.StatusCode) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=2) as face:
            face.upstreams[0].serve = fail(code, "busy")
            face.serve("iris", Replica(1, 1), Replica(2, 2))
            replies = [await face.ask() for _ in range(8)]
            assert {reply.code for reply in replies} == {Code.OK}
            assert face.plane.stats().counters["retries"] == len(face.upstreams[0].requests)

    run(test())


def test_a_lone_copy_is_asked_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.upstreams[0].serve = fail(Code.UNAVAILABLE, "busy")
            face.serve("iris", Replica(1, 1))
            for _ in range(20):
                reply = await face.ask()
                assert (reply.code, reply.details) == (Code.UNAVAILABLE, "busy")
            assert len(face.upstreams[0].requests) == 20
            assert face.plane.stats().counters["ejections"] == 0

    run(test())


def test_exhausted_copies_are_tried_once_more_and_no_more(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=3) as face:
            for upstream in face.upstreams:
                upstream.serve = fail(Code.RESOURCE_EXHAUSTED, "full")
            face.serve("iris", Replica(1, 1), Replica(2, 2), Replica(3, 3))
            assert (await face.ask()).code == Code.RESOURCE_EXHAUSTED
            assert sum(len(upstream.requests) for upstream in face.upstreams) == 2

    run(test())


def test_retries_have_a_budget_and_failing_copies_are_left_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=2, retry_ratio=0.0, threads=1) as face:
            for upstream in face.upstreams:
                upstream.serve = fail(Code.UNAVAILABLE, "down")
            face.serve("iris", Replica(1, 1), Replica(2, 2))
            replies = await asyncio.gather(*(face.ask() for _ in range(200)))
            assert {reply.code for reply in replies} == {Code.UNAVAILABLE}
            counters = face.plane.stats().counters
            assert counters["retries"] < 100, "ten, and ten per second"
            assert counters["retries_denied"] > 0
            assert counters["ejections"] == 1, "at most half"

    run(test())


def test_a_server_that_goes_away_politely_loses_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=1) as face:
            server = grpc.aio.server()
            begun, finish = asyncio.Event(), asyncio.Event()

            async def serve(request: bytes, context: Context) -> bytes:
                begun.set()
                await finish.wait()
                return b"old"

            handler = grpc.unary_unary_rpc_method_handler(serve)
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler("test.Echo", {"Call": handler}),)
            )
            server.add_insecure_port(f"unix:{tmp_path}/polite.sock")
            await server.start()
            face.plane.set_targets([Target(9, f"unix:{tmp_path}/polite.sock")], [])
            face.serve("iris", Replica(1, 9))
            asked = face.ask()
            await begun.wait()
            stopping = asyncio.ensure_future(server.stop(grace=10))
            while not [event for event in face.events if event == TargetLost(9)]:
                late = face.ask(timeout_s=5.0)
                await asyncio.wait({late}, timeout=0.05)
                late.cancel()
                await face.until(lambda: True)
            finish.set()
            assert (await asked).message == b"old"
            await stopping

    run(test())
