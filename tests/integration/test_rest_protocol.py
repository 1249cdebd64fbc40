"""The Open Inference Protocol over REST: what a well-mannered client gets."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from rest_face import MESSAGE_BYTES_MAX, RestFace, rest_face

from modelmesh.dataplane.protocol import Name, NameKind
from modelmesh.errors import HTTP_OF_CODE, Code
from modelmesh.wire.generated import inference_pb2 as pb

BODY: dict[str, Any] = {
    "id": "42",
    "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2.5], [-3e-7, 4]]}],
}


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestFace]:
    with rest_face(tmp_path_factory.mktemp("rest")) as face:
        face.serve("iris")
        yield face


@pytest.fixture
def client(face: RestFace) -> Iterator[httpx.Client]:
    face.upstream.requests.clear()
    with httpx.Client(base_url=face.url, timeout=20) as client:
        yield client


def infer(client: httpx.Client, body: object = BODY, path: str = "iris", **headers: str) -> httpx.Response:
    return client.post(f"/v2/models/{path}/infer", json=body, headers=headers)


def test_infer_answers_in_the_clients_name(face: RestFace, client: httpx.Client) -> None:
    response = infer(client)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "model_name": "iris",
        "id": "42",
        "outputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1.0, 2.5, -3e-7, 4.0]}],
    }
    (request,) = face.upstream.requests
    assert isinstance(request, pb.ModelInferRequest)
    assert request.model_name == "iris"
    assert request.raw_input_contents == [np.array([1, 2.5, -3e-7, 4], "<f4").tobytes()]
    assert face.upstream.metadata["mm-model-id"] == "iris-one"


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT8", [-128, 127]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP32", [0.1, None]),
        ("FP64", [1e-300, None]),
        ("BYTES", ["", 'größer "\\\n']),
    ],
)
def test_every_datatype_comes_back_as_it_went(
    client: httpx.Client, datatype: str, data: list[object]
) -> None:
    tensor = {"name": "x", "shape": [2], "datatype": datatype, "data": data}
    response = infer(client, {"inputs": [tensor]})
    assert response.status_code == 200, response.text
    assert response.json()["outputs"] == [tensor]


def test_bytes_that_are_no_text_are_base64(client: httpx.Client) -> None:
    tensor = {
        "name": "x",
        "shape": [2],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": ["/wA=", "YQ=="],
    }
    assert infer(client, {"inputs": [tensor]}).json()["outputs"] == [tensor]


def test_version_and_percent_encoded_names(face: RestFace, client: httpx.Client) -> None:
    face.serve("a/b ü", model="slash", version="3")
    response = infer(client, path="a%2Fb%20%C3%BC/versions/3")
    assert response.status_code == 200, response.text
    assert response.json()["model_name"] == "a/b ü"
    assert response.json()["model_version"] == "3"
    assert face.upstream.metadata["mm-model-id"] == "slash"
    assert response.request.url.raw_path == b"/v2/models/a%2Fb%20%C3%BC/versions/3/infer"


def test_an_id_header_wins_over_the_path(face: RestFace, client: httpx.Client) -> None:
    face.plane.publish_names([(Name(NameKind.VMODEL, "stable"), "iris-one")])
    response = infer(client, path="anything", **{"mm-vmodel-id": "stable"})
    assert response.status_code == 200, response.text
    both = infer(client, **{"mm-vmodel-id": "stable", "mm-model-id": "iris"})
    assert both.status_code == 400
    assert "mm-model-id" in both.json()["error"]


def test_metadata_health_and_repository(face: RestFace, client: httpx.Client) -> None:
    assert client.get("/v2").json() == {
        "name": "modelmesh",
        "version": "1",
        "extensions": ["model_repository"],
    }
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/iris/ready").json() == {"name": "iris", "ready": True}
    assert client.get("/v2/models/iris").json() == {
        "name": "iris",
        "platform": "echo",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [],
    }
    index = client.post("/v2/repository/index", content=b'{"ready":true}')
    assert index.json() == [{"name": "iris", "state": "READY", "reason": ""}]
    assert client.post("/v2/repository/models/iris/load").status_code == 200
    refused = client.post("/v2/repository/models/iris/unload")
    assert (refused.status_code, refused.json()) == (
        412,
        {"error": "RepositoryModelUnload is not possible now."},
    )


def test_what_is_not_ready_is_503(face: RestFace, client: httpx.Client) -> None:
    face.upstream.ready = False
    try:
        response = client.get("/v2/models/iris/ready")
    finally:
        face.upstream.ready = True
    assert (response.status_code, response.json()) == (503, {"name": "iris", "ready": False})


def test_head_has_no_body(client: httpx.Client) -> None:
    response = client.head("/v2/health/live")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == "13"


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/", 404, "/v2/models/MODEL/infer"),
        ("GET", "/v2/nothing", 404, "nothing at /v2/nothing"),
        ("GET", "/v2/models/iris/infer", 405, "use POST"),
        ("POST", "/v2/health/live", 405, "use GET, HEAD"),
        ("POST", "/v2/models/iris/generate", 501, "not offered"),
        ("POST", "/v2/models/%FF/infer", 400, "percent-encode"),
    ],
)
def test_wrong_paths(client: httpx.Client, method: str, path: str, status: int, words: str) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert words in response.json()["error"]
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "write null"),
        (b"{}", "missing field `inputs`"),
        (
            b'{"inputs":[{"name":"x","shape":[2],"datatype":"INT8","data":[1,300]}]}',
            "Tensor 'x' is INT8, and 300",
        ),
        (b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP16","data":[1,3]}]}', "no JSON form"),
        (b'{"inputs":[{"name":"x","shape":[2],"datatype":"BOOL","data":[1,0]}]}', "true or false"),
        (b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3]]}]}', "a row of 2 has 1"),
        (b'{"inputs":[{"name":"x","shape":[4611686018427387904],"datatype":"FP32","data":[]}]}', "too large"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_wrong_bodies_are_explained(face: RestFace, client: httpx.Client, body: bytes, words: str) -> None:
    response = client.post("/v2/models/iris/infer", content=body)
    assert response.status_code == 400
    assert words in response.json()["error"]
    assert face.upstream.requests == []


def test_any_content_type_and_packed_bodies(client: httpx.Client) -> None:
    plain = json.dumps(BODY).encode()
    for content, headers in [
        (plain, {"content-type": "application/x-www-form-urlencoded"}),
        (gzip.compress(plain), {"content-encoding": "gzip"}),
        (zlib.compress(plain), {"content-encoding": "deflate"}),
        (iter([plain[:10], plain[10:]]), {}),
    ]:
        response = client.post("/v2/models/iris/infer", content=content, headers=headers)
        assert response.status_code == 200, (headers, response.text)
    for content, encoding, status in [(plain, "br", 415), (plain, "gzip", 400), (b"", "gzip", 400)]:
        response = client.post(
            "/v2/models/iris/infer", content=content, headers={"content-encoding": encoding}
        )
        assert response.status_code == status, response.text
        assert "Content-Encoding" in response.json()["error"]


def test_too_large_is_413_also_when_unpacked(client: httpx.Client) -> None:
    large = b" " * (MESSAGE_BYTES_MAX + 1)
    for content, headers in [
        (large, {}),
        (iter([large]), {}),
        (gzip.compress(large), {"content-encoding": "gzip"}),
    ]:
        response = client.post("/v2/models/iris/infer", content=content, headers=headers)
        assert response.status_code == 413
        assert "over the limit" in response.json()["error"]


def test_megabytes_of_json_leave_the_loop_and_come_back_right(client: httpx.Client) -> None:
    values = [float(np.float32(i * 0.37)) for i in range(100_000)]
    tensor = {"name": "x", "shape": [1, len(values)], "datatype": "FP32", "data": values}
    response = infer(client, {"inputs": [tensor]})
    assert response.status_code == 200, response.text
    assert np.array_equal(np.array(response.json()["outputs"][0]["data"], "f4"), np.array(values, "f4"))


def test_refusals_carry_status_and_retry_after(face: RestFace, client: httpx.Client) -> None:
    name = Name(NameKind.VMODEL_FIRST, "full")
    face.plane.refuse_name(name, Code.RESOURCE_EXHAUSTED, "No room for 'full'.", 1500, 60_000)
    response = infer(client, path="full")
    assert (response.status_code, response.json()) == (429, {"error": "No room for 'full'."})
    assert response.headers["retry-after"] == "2"
    face.plane.refuse_name(
        Name(NameKind.VMODEL_FIRST, "big"), Code.RESOURCE_EXHAUSTED, "Never fits.", -1, 60_000, 507
    )
    response = infer(client, path="big")
    assert response.status_code == 507
    assert "retry-after" not in response.headers


def test_the_deadline_is_the_callers(client: httpx.Client) -> None:
    response = infer(client, path="nobody-knows", **{"grpc-timeout": "50m"})
    assert response.status_code == 504
    assert infer(client, **{"grpc-timeout": "soon"}).status_code == 400


def test_a_models_error_reaches_the_client(face: RestFace, client: httpx.Client) -> None:
    def fail(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        raise ValueError("the model says no")

    face.upstream.infer, echo = fail, face.upstream.infer
    try:
        response = infer(client)
    finally:
        face.upstream.infer = echo
    assert response.status_code == 500
    assert "the model says no" in response.json()["error"]


def test_an_answer_that_breaks_the_protocol_is_500(face: RestFace, client: httpx.Client) -> None:
    def wrong(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse(raw_output_contents=[b"abc"])
        response.outputs.add(name="y", datatype="FP32", shape=[1])
        return response

    face.upstream.infer, echo = wrong, face.upstream.infer
    try:
        response = infer(client)
    finally:
        face.upstream.infer = echo
    assert response.status_code == 500
    assert "'y' (FP32, shape [1]) needs 4 raw bytes, but has 3" in response.json()["error"]


def test_headers_travel_both_ways(face: RestFace, client: httpx.Client) -> None:
    headers = [
        (b"authorization", b"Bearer t"),
        (b"traceparent", b"00-1"),
        (b"x-latin", b"\xe9"),
        (b"connection", b"x-hop"),
        (b"x-hop", b"1"),
    ]
    response = client.post("/v2/models/iris/infer", json=BODY, headers=headers)
    assert response.status_code == 200
    assert response.headers["mm-model-id"] == "iris-one"
    seen = face.upstream.metadata
    assert (seen["authorization"], seen["traceparent"]) == ("Bearer t", "00-1")
    assert not {"x-latin", "x-hop", "host", "content-length", "accept-encoding"} & set(seen)


def test_binary_bodies_are_refused_not_misread(client: httpx.Client) -> None:
    response = infer(client, **{"inference-header-content-length": "10"})
    assert response.status_code == 501
    assert "Inference-Header-Content-Length" in response.json()["error"]


def test_the_triton_client_in_json(face: RestFace) -> None:
    with triton.InferenceServerClient(f"{face.address[0]}:{face.address[1]}") as client:
        assert client.is_server_live()
        assert client.is_model_ready("iris")
        assert client.get_model_metadata("iris")["platform"] == "echo"
        rows = np.array([[1, 2], [3, 4]], np.int32)
        given = triton.InferInput("x", [2, 2], "INT32")
        given.set_data_from_numpy(rows, binary_data=False)
        result = client.infer("iris", [given], outputs=[triton.InferRequestedOutput("x", binary_data=False)])
        assert np.array_equal(result.as_numpy("x"), rows)
        given.set_data_from_numpy(rows, binary_data=True)
        with pytest.raises(Exception, match="Binary tensors over REST are not offered"):
            client.infer("iris", [given])


def test_http_of_code_is_one_table(face: RestFace, client: httpx.Client) -> None:
    for code, status in HTTP_OF_CODE.items():
        if code is not Code.OK:
            name = Name(NameKind.VMODEL_FIRST, f"code-{code.name}")
            face.plane.refuse_name(name, code, f"It is {code.name}.", -1, 60_000)
            assert infer(client, path=name.name).status_code == status, code
