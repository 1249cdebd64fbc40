"""`modelmesh adapter builtin` as a process: a real model behind mmesh.ModelRuntime, used directly and by a mesh of ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from modelmesh.testing.serving import Served, served, until, write_iris
from modelmesh.wire.generated import inference_pb2
from modelmesh.wire.generated import model_runtime_pb2 as wire

ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
BODY = {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP64", "data": ROWS}]}


class Adapter:
    """The process, at ports of its own that it has again when it is started again."""

    def __init__(self, scratch: Path, *arguments: str) -> None:
        self.scratch = scratch
        self.arguments = arguments
        self.port, self.serving_port = free_port(), free_port()
        self.out = scratch / "adapter.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "modelmesh", "adapter", "builtin", *self.arguments]
        command += ["--port", str(self.port), "--serving-port", str(self.serving_port)]
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        process = self.process
        until(lambda: "requests" in self.out.read_text() or process.poll() is not None, "the adapter", 60)
        assert process.poll() is None, self.out.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def call(self, method: str, request: Any, answer: Any) -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            rpc = channel.unary_unary(
                f"/mmesh.ModelRuntime/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            return rpc(request, timeout=60)

    def load(self, model: str, path: Path | str, type: str = "sklearn", key: str = "") -> int:
        request = wire.LoadModelRequest(modelId=model, modelType=type, modelPath=str(path), modelKey=key)
        return int(self.call("loadModel", request, wire.LoadModelResponse).sizeInBytes)

    def status(self) -> wire.RuntimeStatusResponse:
        answer: wire.RuntimeStatusResponse = self.call(
            "runtimeStatus", wire.RuntimeStatusRequest(), wire.RuntimeStatusResponse
        )
        return answer

    def infer(self, model: str, method: str = "inference.GRPCInferenceService/ModelInfer") -> list[int]:
        request = inference_pb2.ModelInferRequest(model_name="as the client says")
        tensor = request.inputs.add(name="x", datatype="FP64", shape=[2, 4])
        tensor.contents.fp64_contents.extend([number for row in ROWS for number in row])
        with grpc.insecure_channel(f"127.0.0.1:{self.serving_port}") as channel:
            rpc = channel.unary_unary(
                f"/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=inference_pb2.ModelInferResponse.FromString,
            )
            headers = (("mm-model-id", model), ("mm-model-id-bin", model.encode()))
            answer = rpc(request, timeout=60, metadata=headers)
        assert answer.model_name == request.model_name
        return list(answer.outputs[0].contents.int64_contents)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Adapter, Path, Any]]:
    scratch = tmp_path_factory.mktemp("adapter")
    models = scratch / "models"
    estimator = write_iris(models / "iris")
    adapter = Adapter(scratch, "--memory", "500MiB", "--workers", "1", "--model-root", str(models))
    adapter.start()
    try:
        yield adapter, models, estimator
        assert adapter.stop() == 0, adapter.out.read_text()
    finally:
        if adapter.process is not None and adapter.process.poll() is None:
            os.killpg(adapter.process.pid, signal.SIGKILL)
            adapter.process.wait(10)


def test_it_keeps_the_contract(adapter: tuple[Adapter, Path, Any]) -> None:
    server, models, estimator = adapter
    status = server.status()
    assert status.status == status.READY
    assert status.capacityInBytes > 100 << 20
    assert "inference.GRPCInferenceService/ModelInfer" in status.methodInfos
    request = wire.PredictModelSizeRequest(modelId="a", modelType="sklearn", modelPath="iris")
    assert server.call("predictModelSize", request, wire.PredictModelSizeResponse).sizeInBytes > 0
    assert refused(lambda: server.infer("a"))[0] == "NOT_FOUND"
    size_bytes = server.load("a", models / "iris")
    told = server.call("modelSize", wire.ModelSizeRequest(modelId="a"), wire.ModelSizeResponse)
    assert told.sizeInBytes == (size_bytes or told.sizeInBytes) > 0
    assert server.load("a", models / "iris") == told.sizeInBytes
    assert server.infer("a") == estimator.predict(ROWS).tolist()
    server.load("b", "iris", "rt:any", '{"model_type": {"name": "sklearn"}}')
    assert server.infer("b") == estimator.predict(ROWS).tolist()
    for _ in range(2):
        server.call("unloadModel", wire.UnloadModelRequest(modelId="a"), wire.UnloadModelResponse)
    assert refused(lambda: server.infer("a"))[0] == "NOT_FOUND"
    assert server.infer("b")
    server.status()
    assert refused(lambda: server.infer("b"))[0] == "NOT_FOUND"


def test_what_cannot_be_loaded_says_why(adapter: tuple[Adapter, Path, Any]) -> None:
    server, models, _ = adapter
    assert refused(lambda: server.load("a", "/etc/passwd")) == (
        "FAILED_PRECONDITION",
        f'Model "a": /etc/passwd does not lie under the model root {models}; move it there, or start the instance with another '
        "--model-root.",
    )
    assert refused(lambda: server.load("a", models / "none"))[0] == "NOT_FOUND"
    assert refused(lambda: server.load("a", models / "iris", "prophet"))[0] == "FAILED_PRECONDITION"
    big = models / "big.onnx"
    with big.open("wb") as stream:
        stream.write(b"\x08\x07")
        stream.truncate(900 << 20)
    assert refused(lambda: server.load("a", big, "onnx"))[0] == "RESOURCE_EXHAUSTED"
    missing = wire.ModelSizeRequest(modelId="never")
    assert refused(lambda: server.call("modelSize", missing, wire.ModelSizeResponse))[0] == "NOT_FOUND"


def test_a_mesh_of_ours_serves_by_it_and_survives_its_death(
    adapter: tuple[Adapter, Path, Any], tmp_path: Path
) -> None:
    server, models, estimator = adapter
    runtime = f"127.0.0.1:{server.port} serving=127.0.0.1:{server.serving_port}"
    with served(tmp_path / "mesh", "--runtime", runtime, "--state", "memory") as mesh:
        done = mesh.cli("register", "iris", "--type", "sklearn", "--path", str(models / "iris"))
        assert done.returncode == 0, done.stderr
        assert predicted(mesh) == estimator.predict(ROWS).tolist()
        server.stop(signal.SIGKILL)
        server.start()
        assert predicted(mesh) == estimator.predict(ROWS).tolist()


def predicted(mesh: Served) -> list[int]:
    response = httpx.post(f"{mesh.rest}/v2/models/iris/infer", json=BODY, timeout=60)
    assert response.status_code == 200, response.text
    data: list[int] = response.json()["outputs"][0]["data"]
    return data
