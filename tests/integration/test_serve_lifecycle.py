"""Start and stop: clean ends, crashes, taken ports, states in use."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from modelmesh.testing.serving import STOP_S, Served, served, until, write_iris

SMALL = ("--memory", "600MiB", "--workers", "1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: int) -> None:
    write_iris(tmp_path / "models" / "iris")
    instance = Served(tmp_path, str(tmp_path / "models"), *SMALL)
    try:
        instance.wait_ready()
        instance.cli("load", "iris")
        assert len(instance.members()) >= 2
        assert instance.stop(number) == 0, instance.err.read_text()
        instance.assert_nothing_left()
        assert "Traceback" not in instance.err.read_text()
    finally:
        instance.kill_all()


def test_requests_in_flight_are_finished(tmp_path: Path) -> None:
    """The first request loads the model; the signal comes while it waits for that."""
    write_iris(tmp_path / "models" / "iris")
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [5.1, 3.5, 1.4, 0.2]}]}
    instance = Served(tmp_path, str(tmp_path / "models"), *SMALL)
    answers: list[int] = []
    try:
        instance.wait_ready()

        def ask() -> None:
            url = f"{instance.rest}/v2/models/iris/infer"
            answers.append(httpx.post(url, json=body, timeout=STOP_S).status_code)

        client = threading.Thread(target=ask)
        until(lambda: "Ctrl-C" in instance.out.read_text(), "the greeting", 60)
        instance.cli("unload", "iris")
        client.start()
        until(
            lambda: answers or httpx.get(f"{instance.ops}/models/iris").json()["state"] != "cold",
            "the request",
            30,
        )
        assert instance.stop() == 0
        client.join(STOP_S)
        assert answers == [200]
        instance.assert_nothing_left()
    finally:
        instance.kill_all()


class Slow:
    """Unpickling it takes a minute: a model that is being loaded for as long as a test needs."""

    def __reduce__(self) -> tuple[object, tuple[float]]:
        return time.sleep, (60.0,)


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    (tmp_path / "models" / "slow").mkdir(parents=True)
    (tmp_path / "models" / "slow" / "model.pkl").write_bytes(pickle.dumps(Slow()))
    instance = Served(tmp_path, str(tmp_path / "models"), "--grace", "600", *SMALL)
    try:
        instance.wait_ready()
        waiting = threading.Thread(target=lambda: instance.cli("infer", "slow", "--data", "[[1.0]]"))
        waiting.start()
        until(lambda: httpx.get(f"{instance.ops}/instance").json()["loads_running"] > 0, "the load runs")
        instance.process.send_signal(signal.SIGTERM)
        until(lambda: "A second signal" in instance.err.read_text(), "the first signal was heeded")
        assert instance.process.poll() is None
        instance.process.send_signal(signal.SIGTERM)
        assert instance.process.wait(20) == 0, instance.err.read_text()
        waiting.join(30)
        instance.assert_nothing_left()
    finally:
        instance.kill_all()


def test_a_signal_during_the_start_is_heeded(tmp_path: Path) -> None:
    instance = Served(tmp_path, "--state", "memory", *SMALL)
    try:
        until(lambda: len(instance.members()) >= 2, "a worker is being started", 30)
        assert instance.stop() == 0, instance.err.read_text()
        instance.assert_nothing_left()
    finally:
        instance.kill_all()


def test_after_a_crash_workers_end_and_the_next_start_cleans_up(tmp_path: Path) -> None:
    write_iris(tmp_path / "models" / "iris")
    arguments = (str(tmp_path / "models"), "--state", str(tmp_path / "kept"), *SMALL)
    crashed = Served(tmp_path / "first", *arguments)
    try:
        crashed.wait_ready()
        done = crashed.cli(
            "register", "second", "--type", "sklearn", "--path", str(tmp_path / "models" / "iris")
        )
        assert done.returncode == 0, done.stderr
        os.kill(crashed.process.pid, signal.SIGKILL)
        crashed.process.wait(10)
        until(lambda: not crashed.members(), "orphans end", 20)
    finally:
        crashed.kill_all()
    with served(tmp_path / "second", *arguments) as again:
        models = {model["id"] for model in again.cli_json("list")["models"]}
        assert "second" in models
        answered = again.cli("infer", "iris", "--data", "[[5.1, 3.5, 1.4, 0.2]]")
        assert answered.returncode == 0, answered.stderr


def test_a_state_in_use_is_one_sentence(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "kept"))
    with served(tmp_path / "first", *state, *SMALL):
        second = Served(tmp_path / "second", *state, *SMALL)
        assert second.process.wait(30) == 4
        error = second.err.read_text()
        assert error.count("\n") == 1
        assert "kept" in error
        assert "in use" in error
        second.assert_nothing_left()


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_taken_port_is_one_sentence(tmp_path: Path, taken: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        ports = [0, 0, 0]
        ports[taken] = holder.getsockname()[1]
        instance = Served(tmp_path, "--state", "memory", *SMALL, ports=(ports[0], ports[1], ports[2]))
        try:
            assert instance.process.wait(30) == 4, instance.err.read_text()
            error = instance.err.read_text()
            assert error.count("\n") == 1, error
            assert str(ports[taken]) in error
            instance.assert_nothing_left()
        finally:
            instance.kill_all()


BUG = """
import sys
from modelmesh.cli.main import main
from modelmesh.mesh.mesh import Mesh

def tick(self):
    raise ZeroDivisionError("a bug")

Mesh.tick = tick
main(sys.argv[1:])
"""


def test_a_bug_ends_it_cleanly_and_is_named(tmp_path: Path) -> None:
    instance = Served(tmp_path, "--state", "memory", *SMALL, program=("-c", BUG))
    try:
        assert instance.process.wait(60) == 6, instance.err.read_text()
        error = instance.err.read_text()
        assert "ZeroDivisionError: a bug" in error
        assert error.splitlines()[-1].startswith("A bug of ours ended the instance")
        instance.assert_nothing_left()
    finally:
        instance.kill_all()


def test_too_little_memory_is_one_sentence(tmp_path: Path) -> None:
    instance = Served(tmp_path, "--state", "memory", "--memory", "1MiB", "--workers", "1")
    try:
        assert instance.process.wait(30) == 4, instance.err.read_text()
        assert instance.err.read_text().count("\n") == 1
        assert "memory" in instance.err.read_text()
        instance.assert_nothing_left()
    finally:
        instance.kill_all()


def test_an_idle_instance_is_small_and_imports_little(tmp_path: Path) -> None:
    with served(tmp_path, "--state", "memory", *SMALL) as instance:
        maps = Path(f"/proc/{instance.process.pid}/maps").read_text()
        assert "/numpy/" not in maps
        status = Path(f"/proc/{instance.process.pid}/status").read_text()
        resident_kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        assert resident_kib < 90 * 1024


def test_prestop_drains(tmp_path: Path) -> None:
    with served(tmp_path, "--state", "memory", *SMALL) as instance:
        assert httpx.get(f"{instance.ops}/prestop", timeout=30).status_code == 200
        assert httpx.get(f"{instance.ops}/ready", timeout=30).status_code == 503
        assert httpx.get(f"{instance.ops}/live", timeout=30).status_code == 200
