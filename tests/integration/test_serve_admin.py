"""A running instance, administered: registrations, paths, folders that change, the journal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import httpx
import pytest

from modelmesh.testing.serving import Served, served, until, write_iris

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [5.1, 3.5, 1.4, 0.2]}]}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    scratch = tmp_path_factory.mktemp("admin")
    write_iris(scratch / "models" / "iris")
    write_iris(scratch / "elsewhere" / "iris")
    arguments = (str(scratch / "models"), "--memory", "600MiB", "--workers", "1")
    with served(scratch, *arguments, "--journal-file", str(scratch / "journal.jsonl")) as running:
        yield running


def ask(instance: Served, name: str) -> int:
    return httpx.post(f"{instance.rest}/v2/models/{name}/infer", json=BODY, timeout=60).status_code


def test_a_model_is_registered_used_and_removed(instance: Served) -> None:
    path = str(instance.scratch / "models" / "iris")
    assert instance.cli("register", "by-hand", "--type", "sklearn", "--path", path).returncode == 0
    assert ask(instance, "by-hand") == 200
    assert instance.cli_json("status", "by-hand")["state"] == "loaded"
    assert instance.cli("unload", "by-hand").returncode == 0
    assert instance.cli_json("status", "by-hand")["state"] == "cold"
    assert instance.cli("load", "by-hand").returncode == 0
    assert instance.cli("unregister", "by-hand").returncode == 0
    until(lambda: ask(instance, "by-hand") == 404, "it is gone")


def test_a_canary_takes_over_and_a_worse_one_is_given_up(instance: Served) -> None:
    from joblib import dump
    from sklearn.linear_model import LogisticRegression

    narrow = instance.scratch / "models" / "narrow"
    narrow.mkdir()
    dump(LogisticRegression().fit([[0.0, 1.0], [1.0, 0.0]], [0, 1]), narrow / "model.joblib")
    iris = str(instance.scratch / "models" / "iris")
    for model, path in (("steady", iris), ("better", iris), ("worse", str(narrow))):
        assert instance.cli("register", model, "--type", "sklearn", "--path", path).returncode == 0
    assert instance.cli("vmodel", "set", "pet", "steady").returncode == 0

    def answers(n: int) -> list[tuple[str, int]]:
        url = f"{instance.rest}/v2/models/pet/infer"
        with httpx.Client(timeout=60) as client:
            asked = [client.post(url, json=BODY) for _ in range(n)]
        return [(answer.headers["mm-model-id"], answer.status_code) for answer in asked]

    assert answers(1) == [("steady", 200)]
    terms = ("--canary-for", "0", "--canary-requests", "20")
    begun = instance.cli("vmodel", "set", "pet", "better", "--canary", "50%", *terms, "--wait")
    assert begun.stdout.startswith("pet: active steady, target better (canary, 50 %)\n")
    seen = answers(38)
    assert {code for _, code in seen} == {200}
    assert [model for model, _ in seen].count("better") in (18, 19)
    sides = instance.cli_json("vmodel", "get", "pet")["canary"]
    assert sides["target"]["requests"] + sides["active"]["requests"] <= 38
    answers(4)
    until(lambda: instance.cli_json("vmodel", "get", "pet")["active"] == "better", "it took over")

    assert instance.cli("vmodel", "set", "pet", "worse", "--canary", "30%", "--wait").returncode == 0
    seen = answers(100)
    assert {code for model, code in seen if model == "better"} == {200}
    assert 200 not in {code for model, code in seen if model == "worse"}
    until(lambda: instance.cli_json("vmodel", "get", "pet")["target_failed"], "it was given up")
    assert "requests failed (100 %)" in instance.cli("vmodel", "get", "pet").stdout
    assert set(answers(20)) == {("better", 200)}
    assert 'Its canary "worse" was given up' in instance.cli("explain", "pet").stdout


def test_paths_outside_the_model_root_are_refused(instance: Served) -> None:
    done = instance.cli(
        "register", "bad", "--type", "sklearn", "--path", str(instance.scratch / "elsewhere" / "iris")
    )
    assert done.returncode == 1
    assert "does not lie under the model root" in done.stderr


def test_many_registrations(instance: Served) -> None:
    path = str(instance.scratch / "models" / "iris")
    source = instance.scratch / "many.jsonl"
    source.write_text(
        "".join(json.dumps({"id": f"many-{n}", "type": "sklearn", "path": path}) + "\n" for n in range(3_000))
    )
    assert instance.cli_json("register", "--from", str(source)) == {
        "registered": 3_000,
        "failed": 0,
        "failures": [],
    }
    assert instance.cli_json("list", "many-")["total"] == 3_000
    assert ask(instance, "many-2999") == 200


def test_a_vmodel_moves(instance: Served) -> None:
    path = str(instance.scratch / "models" / "iris")
    for model in ("blue", "green"):
        assert instance.cli("register", model, "--type", "sklearn", "--path", path).returncode == 0
    assert instance.cli("vmodel", "set", "colour", "blue").returncode == 0
    assert ask(instance, "colour") == 200
    assert instance.cli("vmodel", "set", "colour", "green", "--wait").returncode == 0
    assert instance.cli_json("vmodel", "get", "colour")["active"] == "green"
    assert ask(instance, "colour") == 200
    refused = instance.cli("unregister", "green")
    assert refused.returncode == 1
    assert "green" in refused.stderr


def test_the_folder_is_followed(instance: Served) -> None:
    folder = instance.scratch / "models" / "late"
    write_iris(folder)
    until(lambda: instance.cli("status", "late").returncode == 0, "the new model is registered")
    assert ask(instance, "late") == 200
    shutil.rmtree(folder)
    until(lambda: ask(instance, "late") == 404, "the removed model is unregistered")


def test_what_is_no_model_is_named_once(instance: Served) -> None:
    (instance.scratch / "models" / "foreign").mkdir()
    (instance.scratch / "models" / "foreign" / "notes.md").write_text("no model")
    until(lambda: "foreign" in instance.err.read_text(), "the skip line")
    lines = [line for line in instance.err.read_text().splitlines() if "foreign" in line]
    assert len(lines) == 1


def test_a_broken_model_says_why(instance: Served) -> None:
    folder = instance.scratch / "models" / "broken"
    folder.mkdir()
    (folder / "model.joblib").write_bytes(b"\x80\x04cnowhere_at_all\nThing\n.")
    until(lambda: instance.cli("status", "broken").returncode == 0, "it is registered")
    done = instance.cli("load", "broken")
    assert done.returncode == 1
    assert "broken" in done.stderr
    assert instance.cli_json("status", "broken")["failure"]["permanent"]
    assert "failed to load" in instance.cli("explain", "broken").stdout
    assert httpx.get(f"{instance.rest}/v2/models/broken/ready", timeout=30).status_code != 200


def test_the_journal_is_written_to_the_file_too(instance: Served) -> None:
    since = httpx.get(f"{instance.ops}/journal", params={"limit": 500}).json()["entries"]
    path = instance.scratch / "journal.jsonl"
    until(lambda: len(path.read_text().splitlines()) >= len(since), "the file has the entries")
    assert json.loads(path.read_text().splitlines()[0])["sequence"] == 1


def test_top_once(instance: Served) -> None:
    done = instance.cli("top", "--once")
    assert done.returncode == 0, done.stderr
    assert "worker-0" in done.stdout


def test_settings_change_while_it_runs(instance: Served) -> None:
    assert instance.cli("config", "set", "log_level", "debug").returncode == 0
    assert "log_level is debug now, by config/log_level in the store." in instance.err.read_text()
    assert instance.cli("config", "unset", "log_level").returncode == 0
    assert instance.cli("config", "get", "log_level").stdout == "info\n"
    refused = instance.cli("config", "set", "grace", "soon")
    assert (refused.returncode, refused.stderr) == (
        1,
        'grace: "soon" is not a number of seconds from 0 to 86400.\n',
    )
