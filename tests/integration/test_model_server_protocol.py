"""The model server speaks the Open Inference Protocol: every method, datatype, form and error, by a gRPC client."""

from __future__ import annotations

import array
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from model_server_client import Worker, echo, infer_request, outputs_of, trailer

from modelmesh.dataplane.executing import executing_models
from modelmesh.dataplane.model_server import DTYPES, Array, Batch
from modelmesh.errors import Code
from modelmesh.wire.generated import inference_pb2 as pb

MESSAGE_BYTES_MAX = 300_000


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path, message_bytes_max=MESSAGE_BYTES_MAX)
    yield worker
    worker.close()


def sample(datatype: str) -> Array:
    if datatype == "BYTES":
        elements = np.empty((2, 2), dtype=object)
        elements[:] = [[b"", b"\xff\x00"], ["ö".encode(), b"x" * 300]]
        return elements
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        return np.array([[0.5, -2], [np.inf, 0]], dtype=dtype)
    limits = np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [1, 0]], dtype=dtype)


@pytest.mark.parametrize("datatype", [*(name for name in DTYPES if name != "BF16"), "BYTES"])
def test_every_datatype_in_both_forms(worker: Worker, datatype: str) -> None:
    worker.add("echo", echo, inputs=[("x", datatype, [-1, 2])])
    expected = sample(datatype)
    forms = [True] if datatype == "FP16" else [True, False]
    for raw in forms:
        response = worker.client.call("ModelInfer", infer_request("echo", {"x": expected}, raw=raw))
        assert bool(response.raw_output_contents) is raw
        assert response.outputs[0].datatype == datatype
        answer = outputs_of(response)["x"]
        assert answer.tolist() == expected.tolist()


def test_bf16_only_for_models_that_name_it(worker: Worker) -> None:
    seen = []

    def model(batch: Batch) -> None:
        seen.append(batch.inputs()["x"].dtype)
        echo(batch)

    worker.add("bits", model, inputs=[("x", "BF16", [-1])])
    worker.add("numbers", echo)
    request = pb.ModelInferRequest(model_name="bits", raw_input_contents=[b"\x80\x3f"])
    request.inputs.add(name="x", datatype="BF16", shape=[1])
    assert worker.client.call("ModelInfer", request).outputs[0].datatype == "UINT16"
    assert seen == [np.uint16]
    request.model_name = "numbers"
    error = worker.client.fails("ModelInfer", request)
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Input 'x' of model numbers is BF16, but the model takes a numeric datatype.",
    )


def test_arrays_of_any_layout_are_answered(worker: Worker) -> None:
    outputs = {
        "texts": np.array(["a", "größe"]),
        "objects": np.array([b"raw", 7], dtype=object),
        "transposed": np.arange(4, dtype=np.int64).reshape(2, 2).T,
        "strided": np.arange(4, dtype=np.float32)[::2],
        "foreign": np.array([1, 2], dtype=">f8"),
        "empty": np.empty((2, 0), dtype=np.int32),
        "large": np.arange(200_000, dtype=np.float64).reshape(2, -1),
    }
    worker.add("m", lambda batch: batch.reply(outputs))
    for raw in (True, False):
        request = infer_request("m", {"x": np.zeros(2)}, raw=raw)
        answers = outputs_of(worker.client.call("ModelInfer", request))
        assert answers["texts"].tolist() == [b"a", "größe".encode()]
        assert answers["objects"].tolist() == [b"raw", b"7"]
        for name in ("transposed", "strided", "foreign", "empty", "large"):
            np.testing.assert_array_equal(answers[name], outputs[name])


def test_what_cannot_be_answered_is_told_to_the_caller_of_reply(worker: Worker) -> None:
    errors: list[str] = []

    def model(batch: Batch) -> None:
        for outputs in (
            {"y": np.zeros(1, dtype=np.complex64)},
            {"y": np.zeros(1, dtype="datetime64[s]")},
            {"z": np.zeros(1)},
        ):
            try:
                batch.reply(outputs)
            except (TypeError, ValueError) as error:
                errors.append(str(error))
        batch.fail(Code.OUT_OF_RANGE, "tried all")

    worker.add("m", model)
    error = worker.client.fails("ModelInfer", infer_request("m", {"x": np.zeros(1)}, outputs=["y"]))
    assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "tried all")
    assert errors[0].startswith("Output 'y' has the dtype complex64")
    assert errors[1].startswith("Output 'y' has the dtype datetime64")
    assert errors[2] == "Model m: output 'y' was requested but is not in the reply."


def test_the_native_reply_takes_any_contiguous_buffer(worker: Worker) -> None:
    errors: list[str] = []

    def model(batch: Batch) -> None:
        native = batch._native
        for datatype, shape, data in (
            ("FP32", [2], np.zeros(4, dtype=np.float32)[::2]),
            ("FP32", [3], bytes(8)),
            ("FLOAT", [2], bytes(8)),
            ("BYTES", [1], ["text"]),
            ("FP32", [2], [0.0, 1.0]),
        ):
            try:
                native.reply([("y", datatype, shape, data)])
            except (TypeError, ValueError) as error:
                errors.append(str(error))
        native.reply(
            [
                ("bytes", "INT16", [1], b"\x01\x00"),
                ("view", "UINT8", [1, 2], memoryview(bytearray(b"ab"))),
                ("array", "INT64", [2], array.array("q", [1, -1])),
                ("none", "FP64", [0, 3], b""),
                ("texts", "BYTES", [1], [b"t"]),
            ]
        )

    worker.add("m", model)
    answers = outputs_of(worker.client.call("ModelInfer", infer_request("m", {"x": np.zeros(1)})))
    assert {name: answer.tolist() for name, answer in answers.items()} == {
        "bytes": [1],
        "view": [[97, 98]],
        "array": [1, -1],
        "none": [],
        "texts": [b"t"],
    }
    assert len(errors) == 5
    assert "not C-contiguous" in errors[0]
    assert "needs 12 bytes, but has 8" in errors[1]
    assert "unknown datatype 'FLOAT'" in errors[2]


def test_inputs_are_writable_arrays_of_their_own(worker: Worker) -> None:
    def model(batch: Batch) -> None:
        x = batch.inputs()["x"]
        x += 1
        assert (batch.inputs()["x"] == 0).all()
        batch.reply({"y": x})

    worker.add("m", model)
    answer = outputs_of(worker.client.call("ModelInfer", infer_request("m", {"x": np.zeros((1, 3))})))
    assert answer["y"].tolist() == [[1.0, 1.0, 1.0]]


def test_the_answer_echoes_name_version_and_id(worker: Worker) -> None:
    worker.add("concrete", echo)
    request = infer_request("what-the-client-calls-it", {"x": np.zeros(1)}, id="7 ö")
    request.model_version = "3"
    for metadata in ({"mm_model_id": "concrete"}, {"mm_model_id_bin": b"concrete"}):
        response, call = worker.client.with_call("ModelInfer", request, **metadata)
        assert (response.model_name, response.model_version, response.id) == (
            "what-the-client-calls-it",
            "3",
            "7 ö",
        )
        execution_us = trailer(call, "mm-execution-us")
        assert execution_us is not None and int(execution_us) >= 0


def test_a_model_that_is_not_held(worker: Worker) -> None:
    worker.add("here", echo)
    request = infer_request("here", {"x": np.zeros(1)})
    for method, message in (
        ("ModelInfer", request),
        ("ModelReady", pb.ModelReadyRequest(name="here")),
        ("ModelMetadata", pb.ModelMetadataRequest(name="here")),
    ):
        worker.client.call(method, message)
        error = worker.client.fails(method, message, mm_model_id_bin="göne".encode())
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == "Model göne is not loaded in this server."
        assert trailer(error, "mm-not-here") == "1"
    # A NOT_FOUND of the model itself carries no such trailer.
    worker.add("fails", lambda batch: batch.fail(Code.NOT_FOUND, "no such row"))
    error = worker.client.fails("ModelInfer", request, mm_model_id="fails")
    assert (error.code(), trailer(error, "mm-not-here")) == (grpc.StatusCode.NOT_FOUND, None)


def test_parameters_and_requested_outputs_reach_the_model(worker: Worker) -> None:
    seen = []

    def model(batch: Batch) -> None:
        seen.append((batch.parameters, batch.outputs))
        batch.reply({"a": np.zeros(1), "b": np.ones(1), "hidden": np.ones(1)})

    outputs = [("b", "FP64", [-1], True), ("a", "FP64", [-1], True), ("hidden", "FP64", [-1], False)]
    worker.add("m", model, outputs=outputs)
    request = infer_request("m", {"x": np.zeros(1)}, outputs=["hidden", "a"])
    request.parameters["bool"].bool_param = True
    request.parameters["int"].int64_param = -5
    request.parameters["uint"].uint64_param = 2**64 - 1
    request.parameters["float"].double_param = 0.5
    request.parameters["text"].string_param = "ö"
    request.parameters["unset"].Clear()
    response = worker.client.call("ModelInfer", request)
    assert [output.name for output in response.outputs] == ["hidden", "a"]
    assert seen[0] == (
        {"bool": True, "int": -5, "uint": 2**64 - 1, "float": 0.5, "text": "ö"},
        ["hidden", "a"],
    )
    assert seen[0][0]["bool"] is True
    response = worker.client.call("ModelInfer", infer_request("m", {"x": np.zeros(1)}))
    assert [output.name for output in response.outputs] == ["b", "a"]


def test_metadata_of_a_model_and_the_server(worker: Worker) -> None:
    worker.add(
        "m", echo, inputs=[("x", "FP32", [-1, 4])], outputs=[("y", "INT64", [-1], True)], platform="sklearn"
    )
    metadata = worker.client.call("ModelMetadata", pb.ModelMetadataRequest(name="m", version="2"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("m", ["2"], "sklearn")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 4])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("y", "INT64", [-1])]
    assert worker.client.call("ModelReady", pb.ModelReadyRequest(name="m")).ready
    assert worker.client.call("ServerLive", pb.ServerLiveRequest()).live
    assert worker.client.call("ServerReady", pb.ServerReadyRequest()).ready
    assert worker.client.call("ServerMetadata", pb.ServerMetadataRequest()).name == "modelmesh"


def test_a_nameless_input_shows_metadata_that_works(worker: Worker) -> None:
    worker.add("m", echo, inputs=[("", "", [-1, 2])])
    (tensor,) = worker.client.call("ModelMetadata", pb.ModelMetadataRequest(name="m")).inputs
    x = np.zeros((1, 2), dtype=DTYPES[tensor.datatype])
    worker.client.call("ModelInfer", infer_request("m", {tensor.name: x}))


def test_wrong_requests_are_refused_before_they_reach_the_model(worker: Worker) -> None:
    worker.add("m", echo, inputs=[("x", "FP32", [-1, 2])], outputs=[("x", "FP32", [-1, 2], True)])
    good = np.zeros((1, 2), dtype=np.float32)
    short = infer_request("m", {"x": good})
    short.raw_input_contents[0] = b"123"
    shared = infer_request("m", {"x": good})
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    for request, code, words in (
        (
            infer_request("m", {"z": good}),
            "INVALID_ARGUMENT",
            "has no input 'z'; it takes 'x' (FP32, [-1, 2])",
        ),
        (infer_request("m", {}), "INVALID_ARGUMENT", "Input 'x' of model m is missing"),
        (
            infer_request("m", {"x": good.astype("f8")}),
            "INVALID_ARGUMENT",
            "is FP64, but the model takes FP32",
        ),
        (
            infer_request("m", {"x": good[:, :1]}),
            "INVALID_ARGUMENT",
            "has the shape [1, 1], but the model takes [-1, 2]",
        ),
        (infer_request("m", {"x": good}, outputs=["z"]), "INVALID_ARGUMENT", "has no output 'z'"),
        (short, "INVALID_ARGUMENT", "Tensor 'x' (FP32, shape [1, 2]) needs 8 raw bytes, but has 3."),
        (shared, "UNIMPLEMENTED", "shared memory is not offered"),
        (b"\xff\xff\xff", "INVALID_ARGUMENT", "is not a ModelInferRequest"),
        (b"", "INVALID_ARGUMENT", "names no model"),
    ):
        error = worker.client.fails("ModelInfer", request)
        assert error.code().name == code, error
        assert words in error.details(), error.details()
    stats = worker.server.stats()
    assert (stats["requests"], stats["batches"], stats["refused"]) == (0, 0, 9)


def test_unknown_methods_and_compression_are_not_offered(worker: Worker) -> None:
    error = worker.client.fails("ModelConfig", pb.ModelReadyRequest())
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "/inference.GRPCInferenceService/ModelConfig" in error.details()
    call = worker.client.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    with pytest.raises(grpc.RpcError) as compressed:
        call(b"\n" * 2000, timeout=20, compression=grpc.Compression.Deflate)
    assert compressed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "use gzip" in compressed.value.details()
    assert pb.ServerLiveResponse.FromString(
        call(b"\n" * 2000, timeout=20, compression=grpc.Compression.Gzip)
    ).live


def test_messages_up_to_the_limit_and_no_further(worker: Worker) -> None:
    worker.add("m", lambda batch: batch.reply({"n": batch.inputs()["x"].sum(axis=1)}))
    x = np.ones((1, (MESSAGE_BYTES_MAX - 100) // 8))
    answer = outputs_of(worker.client.call("ModelInfer", infer_request("m", {"x": x})))
    assert answer["n"].tolist() == [x.size]
    error = worker.client.fails("ModelInfer", infer_request("m", {"x": np.ones((1, MESSAGE_BYTES_MAX // 8))}))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"limit of {MESSAGE_BYTES_MAX} bytes" in error.details()


def test_the_executing_model_is_in_the_file(worker: Worker) -> None:
    seen = []

    def model(batch: Batch) -> None:
        seen.append(executing_models(worker.executing))
        echo(batch)
        seen.append(executing_models(worker.executing))

    worker.add("größe", model)
    worker.client.call("ModelInfer", infer_request("größe", {"x": np.zeros(1)}))
    assert seen == [["größe"], []]
