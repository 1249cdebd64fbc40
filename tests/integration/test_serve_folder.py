"""What a served folder makes of strays and of a broken highest version, from the disk to the client."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from modelmesh.testing.serving import served, write_iris

SMALL = ("--memory", "600MiB", "--workers", "1")
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [5.1, 3.5, 1.4, 0.2]}]}


def test_strays_are_named_and_skipped(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_iris(models / "iris")
    artefact = (models / "iris" / "model.joblib").read_bytes()
    (models / "empty").mkdir()
    strays = {
        "notes.txt": b"Remember the milk.\n",
        "README.md": b"# Models\n",
        ".DS_Store": b"\0\0\0\1Bud1",
        "archive.zip": b"PK\3\4",
        "nothing.onnx": b"",
        "settings-of-mine.json": b'{"learner": 1}',
        "loading.joblib.part": artefact,
        "allocated.onnx": bytes(4096),
        "empty/model.joblib": b"",
    }
    for name, content in strays.items():
        (models / name).write_bytes(content)
    with served(tmp_path, str(models), *SMALL) as instance:
        assert [model["names"] for model in instance.cli_json("list")["models"]] == [["iris"]]
        lines = [json.loads(line) for line in instance.err.read_text().splitlines() if '"skipped"' in line]
        told = sorted(line["model"] for line in lines)
        assert told == sorted(name.partition("/")[0] for name in strays), "one line each"
        (models / "allocated.onnx").unlink()
        (models / "empty" / "model.joblib").write_bytes(artefact)
        answer = httpx.post(f"{instance.rest}/v2/models/iris/infer", json=BODY, timeout=60)
        assert answer.status_code == 200, answer.text


def test_a_broken_highest_version_fails_nobody(tmp_path: Path) -> None:
    """Its first bytes are right, so only a load finds out, while the first requests wait for it."""
    models = tmp_path / "models"
    for version in ("1", "2", "10"):
        write_iris(models / "iris" / version)
    for version in ("2", "10"):
        artefact = models / "iris" / version / "model.joblib"
        artefact.write_bytes(artefact.read_bytes()[:300])
    with served(tmp_path, str(models), *SMALL) as instance:

        def ask(_: int) -> httpx.Response:
            return httpx.post(f"{instance.rest}/v2/models/iris/infer", json=BODY, timeout=60)

        with ThreadPoolExecutor(8) as clients:
            answers = [*clients.map(ask, range(16))]
        assert {answer.status_code for answer in answers} == {200}, answers[0].text
        assert {answer.json()["outputs"][0]["data"][0] for answer in answers} == {0}
        asked = httpx.post(f"{instance.rest}/v2/models/iris/versions/10/infer", json=BODY, timeout=60)
        assert asked.status_code == 400, "asked for by its number it is refused with its reason"
