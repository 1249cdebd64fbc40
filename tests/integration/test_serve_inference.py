"""`modelmesh serve FOLDER`, used as a client uses it: REST, gRPC, the printed curl line."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from modelmesh.testing.serving import Served, served, until, write_iris
from modelmesh.wire.generated import health_pb2, inference_pb2

ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Any]]:
    scratch = tmp_path_factory.mktemp("serve")
    model = write_iris(scratch / "models" / "iris")
    write_iris(scratch / "models" / "never-used")
    with served(scratch, str(scratch / "models"), "--memory", "600MiB", "--workers", "1") as instance:
        yield instance, model


def rest_request(rows: list[list[float]]) -> dict[str, Any]:
    return {
        "id": "42",
        "inputs": [{"name": "x", "shape": list(np.shape(rows)), "datatype": "FP64", "data": rows}],
    }


def call(instance: Served, service: str, method: str, request: Any, answer: Any, **more: Any) -> Any:
    with grpc.insecure_channel(instance.grpc) as channel:
        rpc = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return rpc(request, timeout=30, **more)


def infer(
    instance: Served, request: inference_pb2.ModelInferRequest, **more: Any
) -> inference_pb2.ModelInferResponse:
    return call(
        instance,
        "inference.GRPCInferenceService",
        "ModelInfer",
        request,
        inference_pb2.ModelInferResponse,
        **more,
    )


def grpc_request(name: str, rows: list[list[float]]) -> inference_pb2.ModelInferRequest:
    request = inference_pb2.ModelInferRequest(model_name=name)
    tensor = request.inputs.add(name="x", datatype="FP64", shape=np.shape(rows))
    tensor.contents.fp64_contents.extend(np.ravel(rows).tolist())
    return request


def test_rest_answers_what_the_model_itself_predicts(iris: tuple[Served, Any]) -> None:
    instance, model = iris
    response = httpx.post(f"{instance.rest}/v2/models/iris/infer", json=rest_request(ROWS), timeout=60)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["model_name"], answer["id"]) == ("iris", "42")
    (output,) = answer["outputs"]
    assert output["name"] == "predict"
    assert output["data"] == model.predict(ROWS).tolist()
    assert response.headers["mm-model-id"].startswith("iris@")


def test_grpc_answers_the_same(iris: tuple[Served, Any]) -> None:
    instance, model = iris
    answer = infer(instance, grpc_request("iris", ROWS))
    (output,) = answer.outputs
    assert list(output.contents.int64_contents) == model.predict(ROWS).tolist()
    raw = inference_pb2.ModelInferRequest(model_name="iris")
    raw.inputs.add(name="x", datatype="FP64", shape=np.shape(ROWS))
    raw.outputs.add(name="predict_proba")
    raw.raw_input_contents.append(np.array(ROWS).tobytes())
    answer = infer(instance, raw)
    probabilities = np.frombuffer(answer.raw_output_contents[0]).reshape(2, 3)
    np.testing.assert_allclose(probabilities, model.predict_proba(ROWS), rtol=1e-6)


def test_the_id_may_come_in_a_header(iris: tuple[Served, Any]) -> None:
    instance, model = iris
    for header in ("mm-model-id", "mm-vmodel-id"):
        answer = infer(instance, grpc_request("overruled", ROWS), metadata=((header, "iris"),))
        assert list(answer.outputs[0].contents.int64_contents) == model.predict(ROWS).tolist()


def test_unknown_models_are_not_found(iris: tuple[Served, Any]) -> None:
    instance, _ = iris
    response = httpx.post(f"{instance.rest}/v2/models/none/infer", json=rest_request(ROWS), timeout=30)
    assert response.status_code == 404
    assert "none" in response.json()["error"]
    with pytest.raises(grpc.RpcError) as caught:
        infer(instance, grpc_request("none", ROWS))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_wrong_requests_are_refused_and_harm_nobody(iris: tuple[Served, Any]) -> None:
    instance, model = iris
    wrong = httpx.post(f"{instance.rest}/v2/models/iris/infer", json=rest_request([[1.0, 2.0]]), timeout=30)
    assert wrong.status_code == 400, wrong.text
    assert httpx.post(f"{instance.rest}/v2/models/iris/infer", content=b"{", timeout=30).status_code == 400
    right = httpx.post(f"{instance.rest}/v2/models/iris/infer", json=rest_request(ROWS), timeout=30)
    assert right.json()["outputs"][0]["data"] == model.predict(ROWS).tolist()


def test_metadata(iris: tuple[Served, Any]) -> None:
    instance, _ = iris
    metadata = httpx.get(f"{instance.rest}/v2/models/iris", timeout=30).json()
    assert metadata["name"] == "iris"
    assert next(each["name"] for each in metadata["outputs"]) == "predict"
    server = httpx.get(f"{instance.rest}/v2", timeout=30).json()
    assert server["name"] == "modelmesh"


def test_health_and_readiness(iris: tuple[Served, Any]) -> None:
    instance, _ = iris
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/iris/ready"):
        assert httpx.get(f"{instance.rest}{path}", timeout=30).status_code == 200
    assert httpx.get(f"{instance.rest}/v2/models/none/ready", timeout=30).status_code == 404
    assert httpx.get(f"{instance.ops}/ready", timeout=30).status_code == 200
    request, answer = health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
    assert call(instance, "grpc.health.v1.Health", "Check", request, answer).status == answer.SERVING


def test_readiness_of_a_cold_model_does_not_load_it(iris: tuple[Served, Any]) -> None:
    instance, _ = iris
    assert httpx.get(f"{instance.rest}/v2/models/never-used/ready", timeout=30).status_code == 200
    assert instance.cli_json("status", "never-used")["state"] == "cold"


def test_the_runtime_protocol_is_forbidden(iris: tuple[Served, Any]) -> None:
    instance, _ = iris
    request, answer = inference_pb2.ServerLiveRequest(), inference_pb2.ServerLiveResponse
    for service in ("mmesh.ModelRuntime", "com.ibm.watson.tas.proto.TasRuntime"):
        with pytest.raises(grpc.RpcError) as caught:
            call(instance, service, "unloadModel", request, answer, metadata=(("mm-model-id", "iris"),))
        if service == "mmesh.ModelRuntime":
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_printed_curl_line_works_when_pasted(iris: tuple[Served, Any]) -> None:
    instance, _ = iris
    text = until(lambda: (out := instance.out.read_text()) and "Ctrl-C" in out and out, "the greeting", 60)
    line = next(line.strip() for line in text.splitlines() if line.strip().startswith("curl "))
    assert "/infer" in line
    pasted = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(pasted.stdout)["outputs"], shlex.join([line])


def test_what_happened_is_counted_and_explained(iris: tuple[Served, Any]) -> None:
    instance, _ = iris
    httpx.post(f"{instance.rest}/v2/models/iris/infer", json=rest_request(ROWS), timeout=30)
    text = httpx.get(f"{instance.ops}/metrics", timeout=30).text
    method = 'method="ModelInfer"'
    assert f'modelmesh_api_request_milliseconds_count{{code="OK",{method}}}' in text
    assert 'modelmesh_worker_pss_bytes{worker="' in text
    story = instance.cli_json("explain", "iris")
    assert "loaded" in [entry["did"] for entry in story["entries"]]
    until(lambda: instance.cli_json("status", "iris")["requests_total"] > 0, "usage was read")


def test_cli_infer(iris: tuple[Served, Any]) -> None:
    instance, model = iris
    done = instance.cli("infer", "iris", "--data", json.dumps(ROWS))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"][0]["data"] == model.predict(ROWS).tolist()
