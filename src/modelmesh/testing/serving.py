"""`modelmesh serve` as a process, for tests: started on free ports, stopped and checked for what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 60.0
STOP_S = 40.0


def until(holds: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """What `holds` returns once it is true; fails with `what` after `timeout_s`."""
    ends_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_s:
        if value := holds():
            return value
        time.sleep(0.02)
    raise AssertionError(f"Not within {timeout_s:g} s: {what}")


class Served:
    """A running instance. `out` and `err` are files that its output goes to."""

    def __init__(
        self,
        scratch: Path,
        *arguments: str,
        ports: tuple[int, int, int] = (0, 0, 0),
        program: tuple[str, ...] = ("-m", "modelmesh"),
    ) -> None:
        """`ports` are gRPC, REST, ops; `program` is what the interpreter is to run, in place of the command."""
        self.scratch = scratch
        self.ready_file = scratch / "ready.json"
        self.runtime_base = scratch / "run"
        self.out, self.err = scratch / "out.txt", scratch / "err.txt"
        scratch.mkdir(parents=True, exist_ok=True)
        self.runtime_base.mkdir(exist_ok=True)
        grpc, rest, ops = ports
        command = [sys.executable, *program, "serve", *arguments, "--ready-file", str(self.ready_file)]
        command += ["--grpc-port", str(grpc), "--rest-port", str(rest), "--ops-port", str(ops)]
        command += ["--peer-port", "0"]
        environment = os.environ | {
            "XDG_RUNTIME_DIR": str(self.runtime_base),
            "XDG_STATE_HOME": str(scratch / "state"),
        }
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env=environment, start_new_session=True
            )

    def wait_ready(self) -> Served:
        until(lambda: self.ready_file.exists() or self.process.poll() is not None, "the ready file", START_S)
        assert self.process.poll() is None, self.err.read_text()
        ready = json.loads(self.ready_file.read_text())
        assert ready["pid"] == self.process.pid
        self.grpc, self.rest, self.ops = ready["grpc"], ready["rest"], ready["ops"]
        self.peer = ready.get("peer", "")
        return self

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "modelmesh", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"MODELMESH_OPS": self.ops},
        )

    def cli_json(self, *arguments: str) -> Any:
        done = self.cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def members(self) -> set[int]:
        """The processes of this instance that live: it leads a session of its own, its workers may lead others."""
        found = {self.process.pid} if self.process.poll() is None else set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"XDG_RUNTIME_DIR={self.runtime_base}\0".encode() in environment and state != "Z":
                found.add(int(entry.name))
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def kill_all(self) -> None:
        for member in self.members():
            os.kill(member, signal.SIGKILL)
        self.process.wait(10)

    def assert_nothing_left(self) -> None:
        until(lambda: not self.members(), f"no process left of {self.members()}", 10)
        assert list(self.runtime_base.iterdir()) == []
        assert not self.ready_file.exists()


@contextmanager
def served(scratch: Path, *arguments: str) -> Iterator[Served]:
    """An instance that is ready; stopped at the end, whatever happened."""
    instance = Served(scratch, *arguments)
    try:
        yield instance.wait_ready()
        if instance.process.poll() is None:
            assert instance.stop() == 0, instance.err.read_text()
            instance.assert_nothing_left()
    finally:
        instance.kill_all()


def write_iris(folder: Path) -> Any:
    """A scikit-learn classifier saved as `model.joblib` in `folder`; returns it."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(features, labels)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}.joblib"
    joblib.dump(model, unfinished)
    shutil.move(unfinished, folder / "model.joblib")
    return model
