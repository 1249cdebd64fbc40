"""The admin API over a control plane without a mesh: what goes in, what comes out, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from modelmesh.errors import FailedPrecondition, NoCapacity
from modelmesh.journal import Did
from modelmesh.mesh.control import Registration
from modelmesh.mesh.views import ModelView
from modelmesh.ops import bodies, follow
from modelmesh.ops.admin import operations
from modelmesh.testing.control import FakeControlPlane
from modelmesh.testing.ops import parts_over, served_ops


@pytest.fixture
def control() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def api(control: FakeControlPlane) -> Iterator[httpx.Client]:
    with served_ops(parts_over(control)) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


def error_of(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message", "model", "retry_after_s"]
    error: dict[str, object] = body["error"]
    return error


def test_a_model_is_registered_loaded_and_gone_again(api: httpx.Client, control: FakeControlPlane) -> None:
    put = api.put("/models/team/iris", json={"type": "sklearn", "path": "/m/iris"})
    assert put.status_code == 200
    assert put.json() == api.get("/models/team%2Firis").json()
    assert put.json()["state"] == "cold"
    assert put.json()["last_used_unix_s"] is None
    loaded = api.post("/models/team/iris:load").json()
    assert (loaded["state"], loaded["size_bytes"], loaded["size_measured"]) == ("loaded", 1 << 20, True)
    assert api.post("/models/team/iris:unload").json()["state"] == "cold"
    assert api.delete("/models/team/iris").status_code == 204
    assert api.delete("/models/team/iris").status_code == 204
    assert error_of(api.get("/models/team/iris"), 404)["code"] == "NOT_FOUND"


def test_how_a_model_is_kept_is_changed_alone(api: httpx.Client, control: FakeControlPlane) -> None:
    api.put("/models/m", json={"type": "onnx", "path": "/m", "min_copies": 2, "pin": True})
    patched = api.patch("/models/m", json={"max_copies": 3, "pin": False}).json()
    kept = {"min_copies": 2, "max_copies": 3, "pin": False, "priority": 1.0}
    assert {name: patched[name] for name in kept} == kept
    assert api.patch("/models/m", json={}).json() == patched == api.get("/models/m").json()
    assert "max_copies" in str(error_of(api.patch("/models/m", json={"max_copies": 1}), 400)["message"])
    assert "Extra inputs" in str(error_of(api.patch("/models/m", json={"type": "onnx"}), 400)["message"])
    assert error_of(api.patch("/models/n", json={"pin": True}), 404)["code"] == "NOT_FOUND"
    lines = b'{"id": "a", "type": "onnx", "priority": 4}\n{"id": "b", "type": "onnx", "priority": 400}\n'
    answer = api.post("/models:batch", content=lines, headers={"content-type": "application/x-ndjson"})
    assert [json.loads(line)["error"] is None for line in answer.text.splitlines()] == [True, False]
    assert control.registered["a"].keep.priority == 4


def test_an_id_may_end_like_a_verb(api: httpx.Client) -> None:
    api.put("/models/a:load", json={"type": "sklearn", "path": "/m"})
    assert api.get("/models/a:load").json()["id"] == "a:load"
    assert api.post("/models/a:load:load").json()["state"] == "loaded"


def test_registering_with_load_tells_of_a_failed_load(api: httpx.Client, control: FakeControlPlane) -> None:
    control.broken["bad"] = "It is not a pickle."
    model = api.put("/models/bad", json={"type": "sklearn", "path": "/m", "load": True, "wait": True}).json()
    assert model["state"] == "failed"
    assert model["failure"]["reason"] == "It is not a pickle."
    assert model["failure"]["code"] == "INVALID_ARGUMENT"
    assert error_of(api.post("/models/bad:load"), 400)["model"] == "bad"


def test_pages_of_models(api: httpx.Client) -> None:
    for number in range(7):
        api.put(f"/models/m{number}", json={"type": "sklearn", "path": "/m"})
    api.post("/models/m3:load")
    first = api.get("/models", params={"limit": 3}).json()
    assert [model["id"] for model in first["models"]] == ["m0", "m1", "m2"]
    assert first["total"] == 7
    rest = api.get("/models", params={"limit": 250, "after": first["next_after"]}).json()
    assert [model["id"] for model in rest["models"]] == ["m3", "m4", "m5", "m6"]
    assert rest["next_after"] == ""
    loaded = api.get("/models", params={"state": "loaded"}).json()
    assert [model["id"] for model in loaded["models"]] == ["m3"]
    assert api.get("/models", params={"prefix": "m6"}).json()["total"] == 1


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("limit=0", 'limit: "0" is not a number from 1 to 250.'),
        ("limit=251", 'limit: "251" is not a number from 1 to 250.'),
        ("limit=some", 'limit: "some" is not of type integer.'),
        ("state=hot", 'state: "hot" is none of cold, queued, loading, loaded, unloading, failed.'),
    ],
)
def test_wrong_queries_are_named(api: httpx.Client, query: str, sentence: str) -> None:
    error = error_of(api.get(f"/models?{query}"), 400)
    assert (error["code"], error["message"]) == ("INVALID_ARGUMENT", sentence)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{}", "type: Field required."),
        (b'{"type": "sklearn", "pth": "x"}', "pth: Extra inputs are not permitted."),
        (b'{"type": 7}', "type: Input should be a valid string."),
        (b"not JSON", "The body is not what is expected: Invalid JSON"),
        (b"[]", "The body is not what is expected: Input should be an object."),
    ],
)
def test_wrong_bodies_are_named(api: httpx.Client, body: bytes, sentence: str) -> None:
    message = error_of(api.put("/models/m", content=body), 400)["message"]
    assert str(message).startswith(sentence)


def test_large_bodies_are_refused(api: httpx.Client) -> None:
    body = b'{"type": "' + b"x" * bodies.BODY_BYTES_MAX + b'"}'
    assert error_of(api.put("/models/m", content=body), 413)["code"] == "RESOURCE_EXHAUSTED"


def test_conflicts(api: httpx.Client) -> None:
    api.put("/models/m", json={"type": "sklearn", "path": "/m"})
    assert (
        error_of(api.put("/models/m", json={"type": "onnx", "path": "/m"}), 409)["code"] == "ALREADY_EXISTS"
    )
    api.put("/vmodels/v", json={"target": "m"})
    assert error_of(api.delete("/models/m"), 412)["code"] == "FAILED_PRECONDITION"


def test_retry_information_rides_in_a_header_too(
    api: httpx.Client, control: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(name: str, *, timeout_s: float | None = None) -> ModelView:
        raise NoCapacity("There is no room.", model=name, retry_after_s=1.2)

    monkeypatch.setattr(control, "load", full)
    response = api.post("/models/m:load")
    assert error_of(response, 503)["retry_after_s"] == 1.2
    assert response.headers["retry-after"] == "2"


def test_a_bug_is_told_as_one(
    api: httpx.Client, control: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "instance", lambda: 1 / 0)
    error = error_of(api.get("/instance"), 500)
    assert error["code"] == "INTERNAL"
    assert "ZeroDivisionError" in str(error["message"])


def test_batches_as_an_array(api: httpx.Client) -> None:
    items = [{"id": "a", "type": "sklearn"}, {"id": " ", "type": "sklearn"}, {"id": "b", "type": "onnx"}]
    answer = api.post("/models:batch", json=items).json()
    assert (answer["registered"], answer["failed"]) == (2, 1)
    assert [result["id"] for result in answer["results"]] == ["a", " ", "b"]
    assert answer["results"][0]["error"] is None
    assert answer["results"][1]["error"]["code"] == "INVALID_ARGUMENT"
    assert api.get("/models").json()["total"] == 2


def test_batches_as_lines_larger_than_any_buffer(api: httpx.Client) -> None:
    lines = [json.dumps({"id": f"m{number}", "type": "sklearn"}) for number in range(5_000)]
    lines[4_321] = '{"id": "m4321"}'
    lines[4_322] = "{"
    response = api.post(
        "/models:batch", content="\n".join(lines), headers={"content-type": "application/x-ndjson"}
    )
    results = [json.loads(line) for line in response.text.splitlines()]
    assert len(results) == 5_000
    failed = {number: result for number, result in enumerate(results) if result["error"]}
    assert sorted(failed) == [4_321, 4_322]
    assert failed[4_321]["error"]["message"] == "Line 4322: type: Field required."
    assert results[4_999] == {"id": "m4999", "error": None}
    assert api.get("/models").json()["total"] == 4_998


def test_an_endless_line_is_refused(api: httpx.Client) -> None:
    response = api.post(
        "/models:batch",
        content=b"x" * (bodies.LINE_BYTES_MAX + 1),
        headers={"content-type": "application/x-ndjson"},
    )
    assert "Line 1 is longer than 64 KiB" in str(error_of(response, 413)["message"])


def test_paths_are_checked_before_anything_is_registered(control: FakeControlPlane) -> None:
    def admit(registration: Registration) -> Registration:
        if registration.path.startswith("/outside"):
            raise FailedPrecondition("It lies outside.", model=registration.id)
        return replace(registration, path=registration.path + "/real")

    with served_ops(replace(parts_over(control), admit=admit)) as url, httpx.Client(base_url=url) as api:
        bad, good = {"type": "t", "path": "/outside/m"}, {"type": "t", "path": "/m"}
        assert error_of(api.put("/models/m", json=bad), 412)["message"] == "It lies outside."
        assert error_of(api.put("/vmodels/v", json={"target": "m", **bad}), 412)["model"] == "m"
        answer = api.post("/models:batch", json=[{"id": "a", **bad}, {"id": "b", **good}]).json()
        assert [bool(result["error"]) for result in answer["results"]] == [True, False]
        assert api.put("/models/c", json=good).json()["path"] == "/m/real"
        assert set(control.registered) == {"b", "c"}


def test_types_that_nothing_serves_are_refused_unless_forced(
    api: httpx.Client, control: FakeControlPlane
) -> None:
    assert api.put("/models/any", json={"type": "whatever"}).status_code == 200
    control.served = ("lightgbm", "sklearn")
    message = str(error_of(api.put("/models/m", json={"type": "sklern"}), 400)["message"])
    assert (
        'no runtime here serves the type "sklern"; there are lightgbm, sklearn. Did you mean sklearn?'
        in message
    )
    assert "Did you mean" not in str(error_of(api.put("/models/m", json={"type": "zzz"}), 400)["message"])
    assert error_of(api.put("/vmodels/v", json={"target": "m", "type": "sklern"}), 400)["model"] == "m"
    assert api.put("/models/upper", json={"type": "SKLearn"}).json()["type"] == "SKLearn"
    assert api.put("/models/forced", json={"type": "sklern", "force": True}).status_code == 200
    items = [
        {"id": "a", "type": "lightgbm"},
        {"id": "b", "type": "lightbgm"},
        {"id": "c", "type": "lightbgm", "force": True},
    ]
    answer = api.post("/models:batch", json=items).json()
    assert [bool(result["error"]) for result in answer["results"]] == [False, True, False]
    assert "Did you mean lightgbm?" in answer["results"][1]["error"]["message"]
    assert set(control.registered) == {"any", "upper", "forced", "a", "c"}


def test_vmodels(api: httpx.Client) -> None:
    api.put("/models/m1", json={"type": "sklearn"})
    made = api.put("/vmodels/v", json={"target": "m1", "owner": "us"}).json()
    assert made == {
        "id": "v",
        "owner": "us",
        "active": "m1",
        "target": "m1",
        "target_failed": False,
        "reason": "",
        "canary": None,
    }
    assert (
        api.put("/vmodels/w", json={"target": "m2", "type": "sklearn", "path": "/m2"}).json()["active"]
        == "m2"
    )
    page = api.get("/vmodels", params={"limit": 1}).json()
    assert [each["id"] for each in page["vmodels"]] == ["v"]
    assert api.get("/vmodels", params={"after": page["next_after"]}).json()["next_after"] == ""
    assert error_of(api.get("/vmodels/v", params={"owner": "them"}), 404)
    assert api.delete("/vmodels/v", params={"owner": "them"}).status_code == 204
    assert api.get("/vmodels/v").status_code == 200
    assert api.delete("/vmodels/v").status_code == 204
    assert api.get("/vmodels/v").status_code == 404


def test_canaries(api: httpx.Client) -> None:
    for model in ("m1", "m2"):
        api.put(f"/models/{model}", json={"type": "sklearn"})
    api.put("/vmodels/v", json={"target": "m1"})
    tried = api.put("/vmodels/v", json={"target": "m2", "canary": {"share": 0.05}}).json()
    assert (tried["active"], tried["target"]) == ("m1", "m2")
    canary = tried["canary"]
    assert canary.pop("since_unix_s") > 0
    assert canary == {
        "share": 0.05,
        "for_s": 600.0,
        "requests": 50,
        "slower_max": 0.0,
        "active": {"requests": 0, "errors": 0, "execution_s": 0.0},
        "target": {"requests": 0, "errors": 0, "execution_s": 0.0},
        "outlook": "No request came yet.",
    }
    now = api.get("/explain/v").json()["now"]
    assert '5 % of its requests go to "m2": No request came yet.' in now
    for wrong, field in (
        ({}, "canary.share"),
        ({"share": 0}, "canary.share"),
        ({"share": 1.1}, "canary.share"),
        ({"share": 0.1, "for_s": -1}, "canary.for_s"),
        ({"share": 0.1, "requests": -1}, "canary.requests"),
        ({"share": 0.1, "for_s": 0, "requests": 0}, "for some time, or for some requests"),
        ({"share": 0.1, "slower_max": 0.5}, "1 time as long"),
    ):
        body = {"target": "m2", "canary": wrong}
        assert field in error_of(api.put("/vmodels/v", json=body), 400)["message"]


def test_the_instance_shows_ledger_and_workers(api: httpx.Client) -> None:
    api.put("/models/m", json={"type": "sklearn"})
    api.post("/models/m:load")
    instance = api.get("/instance").json()
    assert instance["ledger"]["free_bytes"] == (1 << 30) - (1 << 20)
    assert instance["workers"] == [
        {"name": "worker 0", "pss_bytes": 60 << 20, "base_bytes": 45 << 20, "charged_bytes": 1 << 20}
    ]
    assert (instance["models_loaded"], instance["requests_total"], instance["in_flight"]) == (1, 7, 1)
    assert instance["addresses"]["grpc"] == "127.0.0.1:8033"


def test_explain_tells_the_story_of_a_name(api: httpx.Client, control: FakeControlPlane) -> None:
    api.put("/models/m", json={"type": "sklearn"})
    api.put("/vmodels/v", json={"target": "m"})
    api.post("/models/v:load")
    story = api.get("/explain/v").json()
    assert story["now"].startswith('Vmodel "v" points at "m". Model "m" is loaded: 1.00 MiB measured')
    assert [entry["did"] for entry in story["entries"]] == ["registered", "moved", "loaded"]
    assert story["entries"][2]["numbers"] == {"size_bytes": 1 << 20}
    control.journal.record(Did.REFUSED, "ghost", "no such model")
    ghost = api.get("/explain/ghost").json()
    assert ghost["model"] is None
    assert [entry["reason"] for entry in ghost["entries"]] == ["no such model"]
    assert error_of(api.get("/explain/never"), 404)


def test_the_journal_in_pages(api: httpx.Client, control: FakeControlPlane) -> None:
    for number in range(5):
        control.journal.record(Did.LOADED, f"m{number % 2}", "it was asked for", number=number)
    page = api.get("/journal", params={"since": 1, "limit": 2}).json()
    assert [entry["sequence"] for entry in page["entries"]] == [2, 3]
    assert page["next_since"] == 3
    assert [entry["numbers"]["number"] for entry in api.get("/journal?model=m1").json()["entries"]] == [1, 3]
    assert api.get("/journal?since=5").json() == {"entries": [], "next_since": 5}


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
def test_the_journal_followed(api: httpx.Client, control: FakeControlPlane, accept: str) -> None:
    control.journal.record(Did.LOADED, "m", "before")
    with api.stream("GET", "/journal?follow=true&model=m", headers={"accept": accept}) as response:
        assert response.headers["content-type"].startswith(accept)
        lines = (line.removeprefix("data: ") for line in response.iter_lines())
        entries = (json.loads(line) for line in lines if line.startswith("{"))
        assert next(entries)["reason"] == "before"
        control.journal.record(Did.LOADED, "another", "not shown")
        control.journal.record(Did.LOADED, "m", "after")
        assert next(entries)["reason"] == "after"


def test_followers_are_bounded(
    api: httpx.Client, control: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "FOLLOWERS_MAX", 1)
    control.journal.record(Did.LOADED, "m", "before")
    with api.stream("GET", "/journal?follow=true") as response:
        lines = response.iter_lines()
        next(lines)
        assert error_of(api.get("/journal?follow=true"), 429)["retry_after_s"] == 15.0


def test_what_is_not_there_says_so(api: httpx.Client) -> None:
    assert "/docs" in str(error_of(api.get("/nothing"), 404)["message"])
    assert error_of(api.delete("/instance"), 405)["code"] == "UNIMPLEMENTED"


def test_the_document_lists_every_operation(api: httpx.Client) -> None:
    document = api.get("/openapi.json").json()
    offered = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert offered == {
        (operation.method, operation.path) for operation in operations(parts_over(FakeControlPlane()))
    }
    ids = [call["operationId"] for methods in document["paths"].values() for call in methods.values()]
    assert len(ids) == len(set(ids))
    references = json.dumps(document).split("#/components/schemas/")[1:]
    assert {reference.split('"')[0] for reference in references} <= set(document["components"]["schemas"])


def test_the_docs_page_needs_nothing_from_elsewhere(api: httpx.Client) -> None:
    page = api.get("/", follow_redirects=True)
    assert page.url.path == "/docs"
    assert "://" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_the_admin_page_lists_every_operation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "admin-api.md").read_text()
    for operation in operations(parts_over(FakeControlPlane())):
        assert f"`{operation.method} {operation.path}`" in page
        for parameter in operation.parameters:
            assert f"`{parameter.name}`" in page
