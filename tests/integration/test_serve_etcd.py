"""Instances on one etcd, among themselves and beside what KServe ModelMesh wrote there."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from modelmesh.testing.etcd import Etcd, missing
from modelmesh.testing.serving import Served, served, until, write_iris

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [5.1, 3.5, 1.4, 0.2]}]}


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd") as etcd:
        yield etcd


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_iris(tmp_path / "models" / "iris")
    return tmp_path / "models"


def flags(etcd: Etcd, models: Path) -> tuple[str, ...]:
    store = ("--store", f"etcd:{etcd.endpoints}", "--service", "demo")
    return (*store, "--model-root", str(models), "--memory", "300MiB", "--workers", "1", "--grace", "5")


def ask(instance: Served, name: str) -> int:
    return httpx.post(f"{instance.rest}/v2/models/{name}/infer", json=BODY, timeout=60).status_code


def known(instance: Served, name: str) -> bool:
    """Whether it answers for the name, without loading anything."""
    answer = httpx.get(f"{instance.ops}/models/{name}", timeout=60)
    assert answer.status_code in (200, 404), answer.text
    return answer.status_code == 200


def register(instance: Served, model: str, path: str) -> httpx.Response:
    return httpx.put(f"{instance.ops}/models/{model}", json={"type": "sklearn", "path": path}, timeout=60)


def record(etcd: Etcd, key: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(etcd.ctl("get", "--print-value-only", f"/tas-runtime/demo/{key}"))
    return found


def test_one_registry_for_several_instances_which_outlives_them(
    etcd: Etcd, models: Path, tmp_path: Path
) -> None:
    iris = str(models / "iris")
    with served(tmp_path / "a", *flags(etcd, models)) as a, served(tmp_path / "b", *flags(etcd, models)) as b:
        assert register(a, "mine", iris).is_success
        assert httpx.put(f"{b.ops}/vmodels/name", json={"target": "mine"}).is_success
        assert known(b, "mine"), "at once, although the watch may be late"
        assert known(a, "name")
        stored = record(etcd, "registry/mine")
        assert (stored["type"], stored["mPath"], stored["refs"]) == ("sklearn", iris, 1)
        assert record(etcd, "vmodels/name") == {"amid": "mine", "tmid": "mine"}
        assert not known(a, "never")
        assert "while vmodels refer to it (name)" in httpx.delete(f"{a.ops}/models/mine").text
        assert httpx.delete(f"{a.ops}/vmodels/name").is_success
        until(lambda: not known(b, "name"), "the deletion reached the other")
    with served(tmp_path / "c", *flags(etcd, models)) as c:
        assert ask(c, "mine") == 200
        assert httpx.delete(f"{c.ops}/models/mine").is_success
    assert not etcd.ctl("get", "/tas-runtime/demo/registry/mine")


def test_what_modelmesh_registered_is_served_and_left_to_it(
    etcd: Etcd, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = "/root/mm/svc"
    theirs = {
        "type": "sklearn", "mPath": str(models / "iris"), "instanceIds": {"9c4f7b-x2k8d": 1717000000123},
        "refs": 1, "lu": 1716999999000, "lul": 7,
    }  # fmt: skip
    etcd.ctl("put", f"{root}/registry/iris__ksp-1a2b", json.dumps(theirs))
    etcd.ctl("put", f"{root}/vmodels/iris", '{"o":"ksp","amid":"iris__ksp-1a2b","tmid":"iris__ksp-1a2b"}')
    etcd.ctl("put", f"{root}/instances/9c4f7b-x2k8d", '{"count":1}')
    etcd.ctl("put", f"{root}/config/logger_level", "INFO")
    connection = tmp_path / "etcd_connection"
    connection.write_text(json.dumps({"endpoints": etcd.endpoints, "root_prefix": "/root"}))
    monkeypatch.setenv("KV_STORE", f"etcd:{connection}")
    monkeypatch.setenv("MM_SERVICE_NAME", "svc")
    monkeypatch.setenv("MM_KVSTORE_PREFIX", "mm")
    with served(tmp_path / "ours", "--model-root", str(models), "--workers", "1") as ours:
        assert ask(ours, "iris") == 200
        refused = register(ours, "new", str(models / "iris"))
        assert refused.status_code == 412
        assert "Instances of ModelMesh are alive in this registry (9c4f7b-x2k8d)" in refused.text
        etcd.ctl("del", f"{root}/instances/9c4f7b-x2k8d")
        until(lambda: register(ours, "new", str(models / "iris")).is_success, "the registry is ours")
        moved = {"target": "new", "owner": "ksp", "wait": True}
        assert httpx.put(f"{ours.ops}/vmodels/iris", json=moved, timeout=60).is_success
        kept = json.loads(etcd.ctl("get", "--print-value-only", f"{root}/registry/iris__ksp-1a2b"))
        assert kept["instanceIds"] == theirs["instanceIds"]
        assert kept["lul"] == 7
        assert "refs" not in kept
        vmodel = json.loads(etcd.ctl("get", "--print-value-only", f"{root}/vmodels/iris"))
        assert vmodel == {"o": "ksp", "amid": "new", "tmid": "new"}


def test_an_outage_of_etcd_stops_registering_only(etcd: Etcd, models: Path, tmp_path: Path) -> None:
    iris = str(models / "iris")
    (server,) = etcd.servers
    with served(tmp_path / "a", *flags(etcd, models)) as a:
        for model in ("loaded", "cold"):
            assert register(a, model, iris).is_success
        assert ask(a, "loaded") == 200
        server.signal(signal.SIGKILL)
        assert ask(a, "loaded") == 200
        assert ask(a, "cold") == 200, "what is registered is known, and can be loaded"
        with ThreadPoolExecutor() as pool:  # both wait for as long as they may
            registering, asking = pool.submit(register, a, "late", iris), pool.submit(ask, a, "unknown")
            assert registering.result().status_code == 503
            assert "The etcd at" in registering.result().text
            assert asking.result() == 503
        etcd.start(server)
        server.wait_listening()
        until(lambda: register(a, "late", iris).is_success, "registering works again")
        assert ask(a, "late") == 200
        assert ask(a, "unknown") == 404
        etcd.ctl("put", "/tas-runtime/demo/registry/theirs", f'{{"type":"sklearn","mPath":"{iris}"}}')
        elsewhere = tmp_path / "elsewhere"
        write_iris(elsewhere)
        etcd.ctl("put", "/tas-runtime/demo/registry/bad", f'{{"type":"sklearn","mPath":"{elsewhere}"}}')
        refused = httpx.post(f"{a.rest}/v2/models/bad/infer", json=BODY, timeout=60)
        assert refused.status_code == 412
        assert "does not lie under the model root" in refused.text, "whoever registered it"
        until(lambda: "theirs" in httpx.get(f"{a.ops}/models").text, "it is followed again")


def test_a_start_without_etcd_says_so(models: Path, tmp_path: Path) -> None:
    instance = Served(
        tmp_path / "a", "--store", "etcd:127.0.0.1:1", "--service", "demo", "--model-root", str(models)
    )
    try:
        assert instance.process.wait(20) != 0
        assert "The etcd at 127.0.0.1:1 cannot be reached" in instance.err.read_text()
    finally:
        instance.kill_all()


def test_how_a_model_is_kept_is_in_its_record_and_done(etcd: Etcd, models: Path, tmp_path: Path) -> None:
    path = str(models / "iris")
    with served(tmp_path / "a", *flags(etcd, models)) as a:
        kept = ("--min-copies", "2", "--max-copies", "3", "--priority", "2.5")
        a.cli_json("register", "kept", "--type", "sklearn", "--path", path, *kept)
        stored = record(etcd, "registry/kept")
        assert (stored["minCopies"], stored["maxCopies"], stored["priority"]) == (2, 3, 2.5)
        until(lambda: a.cli_json("status", "kept")["state"] == "loaded", "it is loaded unasked")
        status = a.cli_json("status", "kept")
        assert (status["min_copies"], status["max_copies"], status["pin"], status["priority"]) == (
            2,
            3,
            False,
            2.5,
        )
        assert status["pinned_by"] == "min copies"
        a.cli_json("register", "kept", "--min-copies", "0", "--pin")
        assert record(etcd, "registry/kept")["pin"] is True
        assert "minCopies" not in record(etcd, "registry/kept")
        until(lambda: a.cli_json("status", "kept")["pinned_by"] == "pinned", "it is pinned")
        assert a.cli_json("list", "kept")["models"][0]["pin"] is True
        assert "not evicted" in a.cli("status", "kept").stdout
