"""What `make serve` does: train the examples, serve them, ask them with the example clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from modelmesh.testing.serving import Served, served

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    scratch = tmp_path_factory.mktemp("examples")
    models = scratch / "models"
    run("examples.train", str(models))
    with served(scratch, str(models), "--memory", "1GiB") as instance:
        yield instance


def run(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def predictions_and_truth(line: str) -> tuple[str, str]:
    predicted, truth = line.split("predicts")[1].split("truth")
    return predicted.strip(), truth.strip()


@pytest.mark.slow
def test_the_rest_client_gets_the_truth(examples: Served) -> None:
    lines = run("examples.rest_client", examples.rest).splitlines()
    assert len(lines) == 2
    for predicted, truth in map(predictions_and_truth, lines):
        assert predicted == truth


@pytest.mark.slow
def test_the_grpc_client_gets_the_truth(examples: Served) -> None:
    wine, cancer = run("examples.grpc_client", examples.grpc).splitlines()
    predicted, truth = predictions_and_truth(wine)
    assert predicted == truth
    assert "breast-cancer" in cancer


@pytest.mark.slow
def test_every_example_answers_a_request_made_from_its_metadata(examples: Served) -> None:
    from modelmesh.cli.curl import example_request

    names = [row["name"] for row in httpx.post(f"{examples.rest}/v2/repository/index", timeout=30).json()]
    assert len(names) >= 9
    for name in names:
        metadata = httpx.get(f"{examples.rest}/v2/models/{name}", timeout=60).json()
        request = example_request(metadata)
        assert request is not None, metadata
        answer = httpx.post(f"{examples.rest}/v2/models/{name}/infer", json=request, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"]
