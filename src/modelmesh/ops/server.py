"""The ops server: uvicorn inside our event loop, on a socket bound here so that a taken port is one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn

from modelmesh.errors import SettingsError
from modelmesh.ops.app import create_app
from modelmesh.ops.parts import Parts

_STREAMS_CLOSE_IN_S: Final = 1


class OpsServer:
    """Bound when made (`address`), serving from `start` to `stop`."""

    def __init__(self, host: str, port: int) -> None:
        """Raises SettingsError when the port is taken or the host is not ours."""
        self._socket = _bind(host, port)
        bound_host, bound_port = self._socket.getsockname()[:2]
        self.address = f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}"
        self._server: _Embedded | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, parts: Parts) -> None:
        """Returns when connections are accepted."""
        config = uvicorn.Config(
            create_app(parts),
            http="h11",
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_STREAMS_CLOSE_IN_S,
        )
        self._server = _Embedded(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="ops server")
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Answers what is in flight, closes streams after a second. Idempotent."""
        if self._server and self._task:
            self._server.should_exit = True
            await self._task
        self._socket.close()


class _Embedded(uvicorn.Server):
    """Signals belong to whoever runs the event loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(
            f'--host: "{host}" is not an address of this machine: {error.strerror}.'
        ) from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"--ops-port: port {port} is taken; stop what listens there, or choose another port (0: any free one)."
            ) from error
        raise SettingsError(f"--ops-port: {host}:{port} cannot be bound: {error.strerror}.") from error
    return bound
