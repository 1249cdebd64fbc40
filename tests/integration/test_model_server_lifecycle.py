"""The model server starts, stops and dies cleanly, and a bad client disturbs nobody."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from model_server_client import TIMEOUT_S, Client, Worker, echo, infer_request, wait_until

from modelmesh.dataplane.executing import executing_models
from modelmesh.dataplane.model_server import ModelServer
from modelmesh.wire.generated import inference_pb2 as pb


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.close()


def test_stopping_serves_out_what_waits_and_refuses_what_comes(worker: Worker) -> None:
    worker.add("m", echo)
    request = infer_request("m", {"x": np.zeros(1)})
    with worker.paused():
        futures = [worker.client.start(request) for _ in range(3)]
        worker.queued(3)
        stopping = threading.Thread(target=worker.server.stop, args=(TIMEOUT_S,))
        stopping.start()
        late = Client(worker.socket)
        wait_until(lambda: refused(late), "new requests to be refused")
        late.channel.close()
    for future in futures:
        future.result()
    stopping.join(TIMEOUT_S)
    assert not stopping.is_alive()
    assert not worker.socket.exists()
    assert worker.server.next_batch(TIMEOUT_S) is None
    worker.server.stop(TIMEOUT_S)


def refused(client: Client) -> bool:
    try:
        client.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=0.5)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def test_what_still_waits_after_the_grace_is_refused(worker: Worker) -> None:
    worker.add("m", echo)
    with worker.paused():
        future = worker.client.start(infer_request("m", {"x": np.zeros(1)}))
        worker.queued(1)
        worker.server.stop(0.05)
    error = future.exception(timeout=TIMEOUT_S)
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_stop_wakes_the_thread_that_waits(tmp_path: Path) -> None:
    server = ModelServer(tmp_path / "s", tmp_path / "e")
    server.start()
    begun = threading.Event()
    batches = []

    def drain() -> None:
        begun.set()
        batches.append(server.next_batch(TIMEOUT_S * 10))

    thread = threading.Thread(target=drain)
    thread.start()
    begun.wait(TIMEOUT_S)
    server.stop(0)
    thread.join(TIMEOUT_S)
    assert batches == [None]


def test_nothing_comes_in_time(worker: Worker) -> None:
    started = time.monotonic()
    assert worker.server.next_batch(0.01) is None
    assert time.monotonic() - started >= 0.01


def test_a_socket_that_cannot_be_had_is_an_os_error(tmp_path: Path) -> None:
    for path in (tmp_path / "absent" / "s", tmp_path / ("x" * 200)):
        with pytest.raises(OSError):
            ModelServer(path, tmp_path / "e").start()


def test_the_same_id_twice_and_unknown_datatypes_are_refused(worker: Worker) -> None:
    worker.add("m", echo)
    with pytest.raises(ValueError, match="Model m is served already"):
        worker.add("m", echo)
    with pytest.raises(ValueError, match="Tensor 'x' has the unknown datatype 'FLOAT'"):
        worker.add("n", echo, inputs=[("x", "FLOAT", [])])
    assert worker.server.remove_model("never there") == 0


CRASHING = """
import os, sys
from pathlib import Path
from modelmesh.dataplane.model_server import ModelServer
server = ModelServer(Path(sys.argv[1]), Path(sys.argv[2]))
server.add_model("killer", 0, platform="", inputs=[("", "", [])], outputs=[], row_wise=True)
server.start()
print("ready", flush=True)
batch = server.next_batch(30)
os.abort()
"""


def test_a_crash_leaves_the_name_of_the_model(tmp_path: Path) -> None:
    paths = [str(tmp_path / "s"), str(tmp_path / "e")]
    process = subprocess.Popen([sys.executable, "-c", CRASHING, *paths], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert executing_models(tmp_path / "e") == []
        client = Client(tmp_path / "s")
        error = client.fails("ModelInfer", infer_request("killer", {"x": np.zeros(1)}))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        client.channel.close()
        assert process.wait(TIMEOUT_S) == -signal.SIGABRT
        assert executing_models(tmp_path / "e") == ["killer"]
    finally:
        process.kill()
        process.communicate()


FORKING = """
import os, sys
from pathlib import Path
from modelmesh.dataplane.model_server import ModelServer
server = ModelServer(Path(sys.argv[1]), Path(sys.argv[2]))
server.start()
child = os.fork()
if child == 0:
    try:
        server.next_batch(30)
    except RuntimeError as error:
        server.stop(30)
        os._exit(7 if "forked" in str(error) else 1)
    os._exit(2)
_, status = os.waitpid(child, 0)
server.stop(0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_fork_is_refused(tmp_path: Path) -> None:
    paths = [str(tmp_path / "s"), str(tmp_path / "e")]
    assert subprocess.run([sys.executable, "-c", FORKING, *paths], timeout=TIMEOUT_S).returncode == 7


class RawClient:
    """HTTP/2 by hand, for what no library would send."""

    PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    DATA, HEADERS, SETTINGS = 0, 1, 4
    END_STREAM, END_HEADERS = 1, 4

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(str(path))

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        header = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
        self.socket.sendall(header + payload)

    def open(self) -> None:
        """The preface, and the head of a ModelInfer call on stream 1."""
        self.socket.sendall(self.PREFACE)
        self.send(self.SETTINGS, 0, 0)
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": "/inference.GRPCInferenceService/ModelInfer",
            ":authority": "worker",
            "content-type": "application/grpc",
        }
        block = b"".join(
            b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields.items()
        )
        self.send(self.HEADERS, self.END_HEADERS, 1, block)

    def wait_closed(self) -> None:
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        self.socket.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\0" * 100,
        RawClient.PREFACE + b"\0\0\x03\x04\0\0\0\0\0abc",
        RawClient.PREFACE + b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x01\x01\x04\0\0\0\x01\xff",
        RawClient.PREFACE + b"\0\0\0\x04\0\0\0\0\0" + b"\xff\xff\xff\0\0\0\0\0\x01",
    ],
)
def test_what_is_no_http2_closes_its_connection_only(worker: Worker, garbage: bytes) -> None:
    client = RawClient(worker.socket)
    client.socket.sendall(garbage)
    client.wait_closed()
    assert worker.client.call("ServerLive", pb.ServerLiveRequest()).live
    wait_until(lambda: worker.server.stats()["connections"] == 1, "the connection to be closed")


def test_a_client_that_dies_takes_its_requests_along(worker: Worker) -> None:
    worker.add("m", echo)
    message = infer_request("m", {"x": np.zeros(1)}).SerializeToString()
    with worker.paused():
        client = RawClient(worker.socket)
        client.open()
        client.send(client.DATA, client.END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message)
        worker.queued(1)
        client.socket.close()
        worker.queued(0)
    assert worker.server.remove_model("m") == 0
