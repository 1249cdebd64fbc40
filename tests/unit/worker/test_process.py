"""The worker's process between its supervisor and its model server."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any, cast

from modelmesh.dataplane.model_server import ModelServer
from modelmesh.worker.control import Done, Stop, encode, receive
from modelmesh.worker.process import STOPPED_WAIT_S, Worker


class Closing:
    """A server without requests, which takes a while to close and has no batch for anybody from then on."""

    def __init__(self) -> None:
        self.asked = 0
        self.took_s = 0.0
        self._closed = threading.Event()

    def next_batch(self, timeout_s: float) -> None:
        if self._closed.wait(timeout_s):
            self.asked += 1

    def stop(self, grace_s: float) -> None:
        began_s = time.monotonic()
        self._closed.set()
        time.sleep(0.1)
        self.took_s = time.monotonic() - began_s


def test_a_server_that_closes_is_not_asked_without_end() -> None:
    server = Closing()
    supervisor, channel = socket.socketpair()
    with supervisor, channel:
        supervisor.settimeout(30)
        worker = Worker(channel, cast(ModelServer, cast(Any, server)))
        running = threading.Thread(target=worker.run, args=(0,), daemon=True)
        running.start()
        supervisor.sendall(encode(1, Stop(0.0)))
        assert [receive(supervisor), receive(supervisor)] == [(0, Done()), (1, Done())]
        running.join(30)
        assert not running.is_alive()
    assert server.asked <= server.took_s / STOPPED_WAIT_S + 2
