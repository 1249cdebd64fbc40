"""Requests that name several models: one message to each of them, one message back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from relay_face import CLIENT_OPTIONS, METHOD, TIMEOUT_S, Context, Face, metadata, relay_face, run

from modelmesh.dataplane.protocol import Abandoned, Fault, MethodRule, Name, NameKind, Payload, Replica
from modelmesh.errors import Code as OurCode
from modelmesh.wire.generated import inference_pb2 as pb

INFER = "/inference.GRPCInferenceService/ModelInfer"
Code = grpc.StatusCode
Pairs = Sequence[tuple[str, str | bytes]]


class Said(NamedTuple):
    code: grpc.StatusCode
    details: str
    models: list[str]
    """Those whose answers are in the message, in their order."""
    headers: Pairs
    trailers: Pairs


async def ask(
    face: Face,
    models: Sequence[str],
    message: bytes = b"",
    *,
    method: str = METHOD,
    more: Pairs = (),
    header: str = "mm-model-id",
    timeout_s: float | None = TIMEOUT_S,
    compression: grpc.Compression | None = None,
) -> Said:
    headers = (*((header, model) for model in models), *more)
    method_of: Any = face.channel.unary_unary(method)
    call = method_of(message, timeout=timeout_s, metadata=headers, compression=compression)
    try:
        answer = pb.ModelInferResponse.FromString(await call)
    except grpc.aio.AioRpcError as error:
        return Said(
            error.code(),
            error.details() or "",
            [],
            tuple(error.initial_metadata()),
            tuple(error.trailing_metadata()),
        )
    spoken = [part.decode() for part in answer.raw_output_contents]
    return Said(
        Code.OK, "", spoken, tuple(await call.initial_metadata()), tuple(await call.trailing_metadata())
    )


def model_of(context: Context) -> str:
    return metadata(context.invocation_metadata())["mm-model-id"]


async def say_who(request: bytes, context: Context) -> bytes:
    model = model_of(context)
    await context.send_initial_metadata((("x-server", "one"), ("x-model", model)))
    context.set_trailing_metadata((("x-trailer", model),))
    return pb.ModelInferResponse(model_name=model, raw_output_contents=[model.encode()]).SerializeToString()


def serve(face: Face, *models: str) -> None:
    for at, model in enumerate(models):
        face.serve(f"{model}@1", Replica(at + 1, 1), name=model)
    face.upstreams[0].serve = say_who


def unknown(face: Face, model: str, kind: NameKind = NameKind.MODEL_FIRST) -> None:
    """As the control plane refuses a name that stands for nothing."""
    face.plane.refuse_name(Name(kind, model), OurCode.NOT_FOUND, f"model not found: {model}", -1, 60_000)


async def until_idle(face: Face) -> None:
    await face.until(lambda: face.plane.stats().in_flight == 0, "the end of all calls")
    await face.until(lambda: sum(row.in_flight for row in face.plane.take_usage()) == 0, "all slots back")
    stats = face.plane.stats()
    assert (stats.parked_bytes, stats.parked_requests, stats.kept_bytes) == (0, 0, 0)


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_answers_come_as_one_in_the_order_of_the_headers(tmp_path: Path, parallelism: int) -> None:
    models = ["d", "a", "c", "b", "a", "e"]
    gate = asyncio.Event()
    full = asyncio.Event()
    asked: list[str] = []

    async def wait(request: bytes, context: Context) -> bytes:
        assert request == b"shared"
        asked.append(model_of(context))
        if len(asked) == parallelism:
            full.set()
        await gate.wait()
        return await say_who(request, context)

    async def test() -> None:
        async with relay_face(tmp_path, multi_parallelism=parallelism) as face:
            serve(face, *sorted(set(models)))
            face.upstreams[0].serve = wait
            asking = asyncio.ensure_future(ask(face, models, b"shared"))
            await full.wait()
            assert face.plane.stats().in_flight == 1, "one call of a client"
            gate.set()
            said = await asking
            assert (said.code, said.models) == (Code.OK, [f"{model}@1" for model in models])
            assert sorted(asked) == sorted(f"{model}@1" for model in models)
            assert face.upstreams[0].running_max == parallelism
            served = [value for name, value in said.headers if name == "mm-model-id"]
            assert served == ["d@1", "a@1", "c@1", "b@1", "e@1"]
            assert [value for name, value in said.headers if name == "x-server"] == ["one"]
            assert [value for name, value in said.trailers if name == "x-trailer"] == served
            assert sum(row.requests for row in face.plane.take_usage()) == len(models)
            observed = Counter(row.metric for row in face.plane.histograms() for _ in range(sum(row.counts)))
            assert observed["modelmesh_api_request_milliseconds"] == 1, observed
            assert observed["modelmesh_invoke_model_milliseconds"] == len(models)
            assert face.plane.stats().counters["requests"] == 1
            await until_idle(face)

    run(test())


def test_binary_ids_and_vmodels_come_in_several_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            serve(face, "a", "grün")
            face.serve("g@1", Replica(9, 1), name="grün")
            for header, models in (
                ("mm-model-id-bin", ["grün".encode(), b"a"]),
                ("mm-vmodel-id-bin", ["grün".encode(), b"a"]),
                ("mm-vmodel-id", ["a", "a"]),
                ("tas-model-id", ["a", "a"]),
            ):
                said = await ask(face, models, header=header)  # type: ignore[arg-type]
                expected = ["a@1", "a@1"] if "a" in models else ["g@1", "a@1"]
                assert (said.code, said.models) == (Code.OK, expected), header
            both = await ask(face, ["a", "a"], more=(("mm-vmodel-id", "a"),))
            assert both.code == Code.INVALID_ARGUMENT
            assert (await ask(face, ["a", ""])).code == Code.INVALID_ARGUMENT

    run(test())


@pytest.mark.parametrize(
    ("models", "required", "code", "expected"),
    [
        (["a", "x", "b"], None, Code.OK, ["a@1", "b@1"]),
        (["x", "y", "b"], "any", Code.OK, ["b@1"]),
        (["x", "a"], "other", Code.OK, ["a@1"]),
        (["a", "x", "b"], "All", Code.NOT_FOUND, []),
        (["a", "b"], "all", Code.OK, ["a@1", "b@1"]),
        (["y", "x"], None, Code.NOT_FOUND, []),
    ],
)
def test_unknown_models_are_left_out_unless_all_are_required(
    tmp_path: Path, models: list[str], required: str | None, code: grpc.StatusCode, expected: list[str]
) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            serve(face, "a", "b")
            for model in "xy":
                unknown(face, model)
            said = await ask(face, models, more=(("mm-required", required),) if required else ())
            assert (said.code, said.models) == (code, expected)
            if code != Code.OK:
                first = next(model for model in models if model in "xy")
                assert said.details == f"model not found: {first}"
            assert all("mm-required" not in headers for headers, _ in face.upstreams[0].requests)
            await until_idle(face)

    run(test())


def test_a_failure_is_the_answer_and_cancels_the_rest(tmp_path: Path) -> None:
    running = asyncio.Event()

    async def serve_or_fail(request: bytes, context: Context) -> bytes:
        if model_of(context) != "b@1":
            running.set()
            await asyncio.sleep(TIMEOUT_S)
        await running.wait()
        context.set_trailing_metadata((("grpc-status-details-bin", b"rich"),))
        # A model that does not find something is known all the same.
        await context.abort(Code.NOT_FOUND, "größer als 100 %")
        raise AssertionError("abort raises")

    async def test() -> None:
        async with relay_face(tmp_path, multi_parallelism=2) as face:
            serve(face, "a", "b", "c", "d")
            face.upstreams[0].serve = serve_or_fail
            said = await ask(face, ["a", "b", "c", "d"])
            assert (said.code, said.details) == (Code.NOT_FOUND, "größer als 100 %")
            assert ("grpc-status-details-bin", b"rich") in said.trailers
            assert ("mm-model-id", "b@1") in said.headers
            await face.until(lambda: face.upstreams[0].cancelled == 1, "the other one was cancelled")
            assert len(face.upstreams[0].requests) == 2, "the rest was never sent"
            await until_idle(face)

    run(test())


def test_a_model_whose_load_failed_is_not_an_unknown_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            serve(face, "a")
            face.plane.publish_names([(Name(NameKind.MODEL_FIRST, "b"), "b@1")])
            face.plane.refuse("b@1", OurCode.NOT_FOUND, "There is nothing at /b.", 1500, 60_000)
            said = await ask(face, ["a", "b"])
            assert (said.code, said.details) == (Code.NOT_FOUND, "There is nothing at /b.")
            assert ("grpc-retry-pushback-ms", "1500") in said.trailers
            await until_idle(face)

    run(test())


def test_cold_models_are_waited_for_over_one_body(tmp_path: Path) -> None:
    message = bytes(3_000_000)

    async def test() -> None:
        async with relay_face(tmp_path, parked_bytes_max=4_000_000) as face:
            serve(face, "a")
            asking = asyncio.ensure_future(ask(face, ["b", "a", "c"], message))
            names = {(await face.event(Fault)).name.name for _ in range(2)}
            assert names == {"b", "c"}
            await face.until(lambda: len(face.upstreams[0].requests) == 1)
            stats = face.plane.stats()
            assert (stats.parked_requests, stats.parked_bytes) == (2, 5 + len(message))
            unknown(face, "c")
            face.serve("b@1", Replica(7, 1), name="b")
            said = await asking
            assert (said.code, said.models) == (Code.OK, ["b@1", "a@1"])
            assert [len(body) for _, body in face.upstreams[0].requests] == [len(message)] * 2
            await until_idle(face)
            held = face.ask("z", message)
            await face.event(Fault)
            await face.until(lambda: face.plane.stats().parked_bytes == 5 + len(message))
            refused = await ask(face, ["a", "b"], message)
            assert refused.code == Code.RESOURCE_EXHAUSTED and "a and 1 more" in refused.details
            held.cancel()
            await until_idle(face)

    run(test())


@pytest.mark.parametrize("by_deadline", [False, True])
def test_cancellations_and_deadlines_reach_all_models(tmp_path: Path, by_deadline: bool) -> None:
    async def hang(request: bytes, context: Context) -> bytes:
        assert not by_deadline or (context.time_remaining() or TIMEOUT_S) < 1
        await asyncio.sleep(TIMEOUT_S)
        return b""

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            serve(face, "a", "b")
            face.upstreams[0].serve = hang
            timeout_s = 0.5 if by_deadline else TIMEOUT_S
            asking = asyncio.ensure_future(ask(face, ["a", "b", "cold"], timeout_s=timeout_s))
            await face.event(Fault)
            await face.until(lambda: face.upstreams[0].running == 2)
            if by_deadline:
                assert (await asking).code == Code.DEADLINE_EXCEEDED
            else:
                asking.cancel()
            await face.event(Abandoned)
            await face.until(lambda: face.upstreams[0].cancelled == 2, "the model server noticed")
            await until_idle(face)

    run(test())


def test_the_answers_together_keep_to_the_limit(tmp_path: Path) -> None:
    async def swell(request: bytes, context: Context) -> bytes:
        return pb.ModelInferResponse(raw_output_contents=[b"x" * 40_000]).SerializeToString()

    async def test() -> None:
        async with relay_face(tmp_path, message_bytes_max=100_000) as face:
            serve(face, "a", "b", "c")
            face.upstreams[0].serve = swell
            said = await ask(face, ["a", "b"])
            assert (said.code, said.models) == (Code.OK, ["x" * 40_000] * 2)
            said = await ask(face, ["a", "b", "c"])
            assert said.code == Code.RESOURCE_EXHAUSTED and "response" in said.details
            await until_idle(face)

    run(test())


def test_each_model_reads_its_own_id_and_is_replayed_alone(tmp_path: Path) -> None:
    request = pb.ModelInferRequest(model_name="any", raw_input_contents=[bytes(100_000)])
    read: list[str] = []

    async def tell(message: bytes, context: Context) -> bytes:
        read.append(pb.ModelInferRequest.FromString(message).model_name)
        if read.count("b@1") == 1 and read[-1] == "b@1":
            await context.abort(Code.UNAVAILABLE, "busy")
        return await say_who(message, context)

    async def test() -> None:
        async with relay_face(tmp_path, methods={INFER[1:]: (1,)}) as face:
            serve(face, "a", "b")
            face.serve("b@1", Replica(8, 1), Replica(9, 1), name="b")
            face.upstreams[0].serve = tell
            message = request.SerializeToString()
            said = await ask(face, ["b", "a"], message, method=INFER, compression=grpc.Compression.Gzip)
            assert (said.code, said.models) == (Code.OK, ["b@1", "a@1"])
            assert sorted(read) == ["a@1", "b@1", "b@1"]
            await until_idle(face)

    run(test())


def test_payload_processors_hear_of_each_model(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            serve(face, "a", "b")
            face.plane.set_payload_filters([("", "")], 10, 1 << 20)
            said = await ask(face, ["a", "b"], b"shared")
            assert said.code == Code.OK
            heard: list[Payload] = []
            while (payload := await asyncio.to_thread(face.plane.take_payload, 100)) is not None:
                heard.append(payload)
            assert sorted((payload.model, payload.kind) for payload in heard) == [
                ("a@1", "request"), ("a@1", "response"), ("b@1", "request"), ("b@1", "response"),
            ]  # fmt: skip
            assert {payload.data for payload in heard if payload.kind == "request"} == {b"shared"}

    run(test())


def test_streams_of_several_models_are_refused(tmp_path: Path) -> None:
    def two(address: str, method: str) -> grpc.StatusCode:
        # The asyncio client takes a write after an early answer for an error of its own.
        with grpc.insecure_channel(address, options=CLIENT_OPTIONS) as channel:
            headers = (("mm-model-id", "a"), ("mm-model-id", "b"))
            messages: Any = [b"one", b"two"]
            call: Any = channel.stream_stream(method)(iter(messages), timeout=TIMEOUT_S, metadata=headers)
            with suppress(grpc.RpcError):
                list(call)
            code: grpc.StatusCode = call.code()
            return code

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            serve(face, "a", "b")
            for method in ("/test.Echo/CallStream", "/inference.GRPCInferenceService/ModelStreamInfer"):
                assert await asyncio.to_thread(two, face.address, method) == Code.UNIMPLEMENTED
            assert not face.upstreams[0].requests
            await until_idle(face)

    run(test())


def test_a_name_in_the_message_wins_where_a_config_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            serve(face, "a", "b", "c")
            face.plane.set_method_rules([MethodRule(INFER[1:], (1,))], allow_others=True)
            request = pb.ModelInferRequest(model_name="c").SerializeToString()
            assert (await ask(face, ["a", "b"], request, method=INFER)).models == ["c@1"]
            assert (await ask(face, ["a", "b"], b"", method=INFER)).models == ["a@1", "b@1"]

    run(test())
