"""The product under measurement: `modelmesh serve` as a user starts it, on free ports, with a state of its own."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from bench.procs import rss_bytes, running, tree, wait_until

COMMAND = Path(sys.executable).with_name("modelmesh")
REGISTERED_EACH = 100_000
"""What one request may register."""


@dataclass(frozen=True, slots=True)
class Product:
    """A running instance: its ready file, and how long it took until it was written."""

    pid: int
    grpc: str
    rest: str
    ops: str
    start_s: float
    log: Path

    @property
    def workers(self) -> list[int]:
        """The worker processes, and whatever else the instance runs."""
        return [pid for pid in tree(self.pid) if pid != self.pid]

    @property
    def rss_bytes(self) -> int:
        """Of the instance process alone."""
        return rss_bytes(self.pid)

    def get(self, path: str, **parameters: str | int) -> Any:
        """A JSON answer of the ops port. Raises Refused, httpx.TransportError."""
        return _answer(httpx.get(f"{self.ops}{path}", params=parameters, timeout=60))

    def post(self, path: str, body: object = None) -> Any:
        """Send JSON to the ops port. Raises Refused, httpx.TransportError."""
        return _answer(httpx.post(f"{self.ops}{path}", json=body, timeout=600))

    def register(self, models: Iterable[Mapping[str, str]]) -> None:
        """Many at once, each with `id`, `type` and `path`, by streamed requests. Raises Refused when one is not registered."""
        items = iter(models)
        while several := [*islice(items, REGISTERED_EACH)]:
            self._register(several)

    def _register(self, models: Sequence[Mapping[str, str]]) -> None:
        def lines() -> Iterator[bytes]:
            for start in range(0, len(models), 500):
                yield "".join(json.dumps(model) + "\n" for model in models[start : start + 500]).encode()

        headers = {"content-type": "application/x-ndjson"}
        with httpx.stream(
            "POST", f"{self.ops}/models:batch", content=lines(), headers=headers, timeout=300
        ) as answer:
            answer.raise_for_status()
            failed = [line for line in answer.iter_lines() if line and json.loads(line)["error"]]
        if failed:
            raise Refused(f"{len(failed)} models were not registered, e.g. {failed[0]}")


class Refused(Exception):
    """The ops port answered with an error."""


def _answer(response: httpx.Response) -> Any:
    if response.is_error:
        raise Refused(f"{response.request.url} answered {response.status_code}: {response.text}")
    return response.json() if response.content else None


@contextlib.contextmanager
def serving(
    folder: Path | None,
    *,
    memory: str = "2GiB",
    workers: int = 1,
    prefix: Sequence[str] = (),
    flags: Sequence[str] = (),
    state: Path | None = None,
    ready_s: float = 120,
) -> Iterator[Product]:
    """Serve `folder` (None: nothing) for the length of the block; `prefix` goes before the command, e.g. to pin it.

    Without `state` there is a fresh one. RuntimeError with the end of the log when it does not become ready.
    """
    with tempfile.TemporaryDirectory(prefix="modelmesh-bench-") as scratch:
        ready, log = Path(scratch, "ready.json"), Path(scratch, "log")
        command = [*prefix, str(COMMAND), "serve", *([str(folder)] if folder else [])]
        command += [
            "--memory",
            memory,
            "--workers",
            str(workers),
            "--state",
            str(state or Path(scratch, "state")),
        ]
        command += [
            "--grpc-port",
            "0",
            "--rest-port",
            "0",
            "--ops-port",
            "0",
            "--ready-file",
            str(ready),
            *flags,
        ]
        started_s = time.monotonic()
        with running(command, log=log) as process:
            wait_until(ready.exists, "modelmesh serve", process=process, log=log, timeout_s=ready_s)
            start_s = time.monotonic() - started_s
            facts = json.loads(ready.read_text())
            yield Product(facts["pid"], facts["grpc"], facts["rest"], facts["ops"], start_s, log)
