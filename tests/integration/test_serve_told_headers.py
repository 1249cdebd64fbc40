"""`modelmesh serve` tells the chosen headers of requests in the log lines about what they caused, and counts per model."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from modelmesh.testing.serving import served, write_iris

DATA = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [5.1, 3.5, 1.4, 0.2]}]}


def test_a_load_and_a_refusal_tell_who_asked(tmp_path: Path) -> None:
    write_iris(tmp_path / "models" / "iris")  # the greeting asks for this one
    write_iris(tmp_path / "models" / "rose")
    flags = (
        "--memory",
        "600MiB",
        "--workers",
        "1",
        "--metrics",
        "prometheus:port=none;per_model_metrics=true",
    )
    told = json.dumps({"X-Request-Id": "request_id"})
    with served(tmp_path, str(tmp_path / "models"), *flags, "--log-request-headers", told) as instance:
        for model, request in (("rose", "7"), ("rose", "8"), ("nobody", "9")):
            headers = {"x-request-id": request, "authorization": "secret"}
            url = f"{instance.rest}/v2/models/{model}/infer"
            status = httpx.post(url, json=DATA, headers=headers, timeout=60).status_code
            assert status == (200 if model == "rose" else 404)
        text = httpx.get(f"{instance.ops}/metrics", timeout=10).text
    lines = [json.loads(line) for line in instance.err.read_text().splitlines() if line.startswith("{")]
    about = [(line["request_id"], line["did"]) for line in lines if "request_id" in line]
    assert about == [("7", "loading"), ("7", "loaded"), ("9", "refused")]
    assert "secret" not in instance.err.read_text()
    name = "modelmesh_invoke_model_milliseconds_count"
    (line,) = (line for line in text.splitlines() if line.startswith(name) and 'vModelId="rose"' in line)
    assert 'modelId="rose@' in line and line.endswith(" 2.0")
