"""`modelmesh serve` in place of the predecessor: its variables say where the runtime is and what is measured."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from modelmesh.testing.model_runtime import read_answer
from modelmesh.testing.serving import served
from modelmesh.wire.generated import model_mesh_pb2 as pb

PREDICT = "/custom.Service/Predict"


@pytest.fixture
def port() -> Iterator[int]:
    """Of a scripted runtime that is a process of its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        number = int(found.getsockname()[1])
    command = [sys.executable, "-m", "modelmesh.testing.model_runtime", f"127.0.0.1:{number}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield number
        finally:
            process.kill()


def test_the_predecessors_variables_are_enough(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "INTERNAL_GRPC_PORT": str(port),
        "MM_METRICS": "prometheus:port=0;scheme=http;per_model_metrics=true",
        "MM_INFO_METRICS": "mesh_info;deployment=DEPLOYMENT_NAME",
        "DEPLOYMENT_NAME": "here",
    }.items():
        monkeypatch.setenv(name, value)
    with served(tmp_path / "mesh", "--state", "memory") as mesh, grpc.insecure_channel(mesh.grpc) as channel:
        register = channel.unary_unary(
            "/mmesh.ModelMesh/registerModel",
            request_serializer=pb.RegisterModelRequest.SerializeToString,
            response_deserializer=pb.ModelStatusInfo.FromString,
        )
        info = pb.ModelInfo(type="any")
        status = register(
            pb.RegisterModelRequest(modelId="a", modelInfo=info, loadNow=True, sync=True), timeout=60
        )
        assert status.status == pb.ModelStatusInfo.LOADED
        predict = channel.unary_unary(PREDICT)
        for size in [100] * 30 + [1 << 20] * 10:
            answer = predict(b"x" * size, timeout=60, metadata=(("mm-model-id", "a"),))
            assert read_answer(answer).model == "a"
        text = httpx.get(f"{mesh.ops}/metrics", timeout=30).text
        for bound, count in (("128.0", 30), ("524288.0", 30), ("2097152.0", 40)):
            labels = f'code="OK",le="{bound}",method="Predict",modelId="a",vModelId=""'
            assert f"modelmesh_request_size_bytes_bucket{{{labels}}} {count}.0" in text
        assert 'mesh_info{deployment="here"} 1' in text
