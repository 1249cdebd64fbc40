"""Threads that hand payloads on, and what they do when a processor does not take them."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import pytest

from modelmesh.dataplane.protocol import Payload
from modelmesh.errors import Code
from modelmesh.payloads.addresses import parse_addresses
from modelmesh.payloads.consumers import Consumers
from modelmesh.testing.dataplane import FakeDataPlane

REQUEST = Payload("c-1", "iris@1", "iris", "a.B/C", None, {"x": "1"}, b"\x00\xff")
RESPONSE = Payload("c-1", "iris@1", "iris", "a.B/C", Code.NOT_FOUND, {}, b"")


class Sink:
    """A processor over HTTP that answers `status`; what it got is in `got`."""

    def __init__(self, status: int = 200) -> None:
        self.got: Queue[tuple[str, dict[str, Any]]] = Queue()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                sink.got.put((self.path, json.loads(body)))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def sink(status: int = 200) -> Iterator[Sink]:
    made = Sink(status)
    try:
        yield made
    finally:
        made.close()


def consumed(processors: str, *payloads: Payload, dataplane: FakeDataPlane | None = None) -> FakeDataPlane:
    """Consumers from start to stop, with these payloads offered in between."""
    plane = dataplane or FakeDataPlane()
    consumers = Consumers(plane, parse_addresses(processors), n=2, queue_max=9)
    consumers.start()
    for payload in payloads:
        plane.payloads.put(payload)
    consumers.stop()
    assert plane.payload_filters == [], "nothing is offered any more"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("payloads-")]
    return plane


def test_payloads_are_posted_in_the_predecessors_form_also_those_queued_at_the_stop() -> None:
    with sink() as first, sink() as second:
        consumed(f"{first.url}/all?/iris {second.url}/some?other", REQUEST, RESPONSE)
        got = sorted((first.got.get_nowait() for _ in range(2)), key=lambda each: each[1]["kind"])
        assert second.got.empty(), "its filter wants another model"
    assert [path for path, _ in got] == ["/all?/iris"] * 2
    common = {"id": "c-1", "modelid": "iris@1", "vModelId": "iris", "method": "a.B/C"}
    data = base64.b64encode(b"\x00\xff").decode()
    assert [body for _, body in got] == [
        {**common, "kind": "request", "status": "", "metadata": {"x": "1"}, "data": data},
        {**common, "kind": "response", "status": "NOT_FOUND", "metadata": {}, "data": ""},
    ]


def test_a_processor_that_is_away_or_refuses_is_told_and_the_others_get_theirs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with sink(500) as refusing, sink() as fine, caplog.at_level(logging.INFO):
        consumed(f"http://127.0.0.1:1/ {refusing.url} logger: {fine.url}", REQUEST)
        assert fine.got.get_nowait()[1]["id"] == "c-1"
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "did not take a payload" in told and "answered 500" in told
    assert "Request of a.B/C for model iris@1: sent, 2 bytes." in told


def test_drops_are_warned_of_once_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    plane = FakeDataPlane()
    plane.payloads_dropped = 7
    with caplog.at_level(logging.WARNING):
        consumed("logger:", REQUEST, RESPONSE, dataplane=plane)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["7"]
