"""Workers that stop answering, as a client of `modelmesh serve` meets it: it waits a little, or is told why."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from modelmesh.testing.serving import Served, served, until

Save = Callable[..., Path]
SMALL = ("--memory", "600MiB", "--workers", "1")
TIMEOUT_S = 60.0


def body(first: float) -> dict[str, object]:
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [first, 2.0, 3.0, 4.0]}]}


def add(folder: Path, name: str, saved: Path) -> None:
    """Put a saved model into the served folder."""
    (folder / name).mkdir(parents=True)
    saved.rename(folder / name / "model.strange")


def worker_of(instance: Served) -> int:
    """The only worker's process."""
    (worker,) = until(
        lambda: (found := instance.members() - {instance.process.pid}) and len(found) == 1 and found,
        "one worker",
    )
    return int(worker)


def test_requests_survive_a_stopped_worker(tmp_path: Path, strange: Save) -> None:
    """It keeps its connections and says nothing; it is noticed, replaced, and its requests are served by the next."""
    add(tmp_path / "models", "calm", strange("calm"))
    with served(tmp_path / "run", str(tmp_path / "models"), *SMALL) as instance:
        url = f"{instance.rest}/v2/models/calm/infer"
        assert httpx.post(url, json=body(1.0), timeout=TIMEOUT_S).status_code == 200
        stopped = worker_of(instance)
        os.kill(stopped, signal.SIGSTOP)
        answer = httpx.post(url, json=body(1.0), timeout=TIMEOUT_S)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"][0] == 2.0
        assert worker_of(instance) != stopped
        told = instance.cli_json("explain", "calm")
        assert any("did not answer any more and was killed" in str(entry) for entry in told["entries"]), told


def test_a_model_that_never_answers_fails_and_its_neighbours_do_not(tmp_path: Path, strange: Save) -> None:
    add(tmp_path / "models", "calm", strange("calm"))
    add(tmp_path / "models", "hangs", strange("hangs", trouble="sleep 600"))
    patience = ("--inference-timeout", "2")
    with (
        served(tmp_path / "run", str(tmp_path / "models"), *SMALL, *patience) as instance,
        ThreadPoolExecutor(2) as pool,
    ):

        def ask(model: str, first: float) -> httpx.Response:
            url = f"{instance.rest}/v2/models/{model}/infer"
            return httpx.post(url, json=body(first), timeout=TIMEOUT_S)

        for model in ("calm", "hangs"):
            assert ask(model, 1.0).status_code == 200
        hanging = pool.submit(ask, "hangs", 1000.0)
        behind = pool.submit(ask, "calm", 1.0)
        answer = hanging.result(TIMEOUT_S)
        assert answer.status_code == 504
        assert "did not answer within 2 s" in answer.json()["error"]
        assert behind.result(TIMEOUT_S).status_code == 200
        until(lambda: ask("hangs", 1.0).status_code == 200, "it is served in a worker of its own")
        assert ask("hangs", 1000.0).status_code == 504
        refused = until(lambda: (last := ask("hangs", 1.0)).status_code == 412 and last, "the quarantine")
        assert "is quarantined" in refused.json()["error"]
        assert ask("calm", 1.0).status_code == 200
