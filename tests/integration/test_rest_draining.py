"""Stopping politely: what is in flight is answered, what is idle is closed, nothing new is taken."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from rest_face import TIMEOUT_S, echo, rest_face, wait_until

from modelmesh.wire.generated import inference_pb2 as pb

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}]}).encode()


def test_draining(tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()

    def slow(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        started.set()
        assert release.wait(TIMEOUT_S)
        return echo(request)

    with rest_face(tmp_path) as face, ThreadPoolExecutor(1) as pool:
        face.serve("iris")
        face.upstream.infer = slow
        idle = socket.create_connection(face.address, timeout=TIMEOUT_S)
        with idle, httpx.Client(base_url=face.url, timeout=TIMEOUT_S) as client:
            in_flight = pool.submit(client.post, "/v2/models/iris/infer", content=BODY)
            try:
                assert started.wait(TIMEOUT_S)
                face.plane.drain(int(TIMEOUT_S * 1000))
                assert idle.recv(1) == b"", "an idle connection is closed"
                assert not in_flight.done()
            finally:
                release.set()
            response = in_flight.result(TIMEOUT_S)
            assert response.status_code == 200
            assert response.headers["connection"] == "close"
            wait_until(lambda: face.plane.stats().connections == 0)
            with pytest.raises(httpx.TransportError):
                client.post("/v2/models/iris/infer", content=BODY)
