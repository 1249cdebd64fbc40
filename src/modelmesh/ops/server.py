"""An HTTP server: uvicorn inside our event loop, on a socket that was bound before."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from modelmesh.ops.listener import Listener

_STREAMS_CLOSE_IN_S: Final = 1


class HTTPServer:
    """Serves on a listener, and owns it, from `start` to `stop`."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._server: _Embedded | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, application: ASGIApp, tls: ssl.SSLContext | None = None) -> None:
        """Returns when connections are accepted. `tls` None: plain text."""
        config = uvicorn.Config(
            application,
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
        config.load()
        config.ssl = tls
        self._server = _Embedded(config)
        self._task = asyncio.create_task(
            self._server.serve(sockets=[self._listener.socket]),
            name=f"HTTP server at {self._listener.address}",
        )
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Answers what is in flight, closes streams after a second. Idempotent."""
        if self._server and self._task:
            self._server.should_exit = True
            await self._task
        self._listener.close()


class _Embedded(uvicorn.Server):
    """Signals belong to whoever runs the event loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
