"""Our end of a worker's control channel: numbered commands out, their answers in, in any order."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable
from typing import cast

from modelmesh.worker.control import LENGTH, MESSAGE_BYTES_MAX, Message, decode, encode

log = logging.getLogger(__name__)


class WorkerDied(Exception):
    """The process ended before it answered."""


class ControlChannel(asyncio.Protocol):
    """Owned by one event loop. Answers are read without a task of their own: each would cost a load another turn of the loop.
    `on_end` is called once, when the other end closes or breaks the protocol."""

    def __init__(self, name: str, on_end: Callable[[], None]) -> None:
        self._name = name
        self._on_end = on_end
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, end: socket.socket) -> None:
        """Take over our end of the socket pair."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    async def ask(self, command: Message, timeout_s: float) -> Message:
        """Send a command and wait for its answer. Raises WorkerDied, TimeoutError (then the answer is still discarded when it
        comes)."""
        if self._transport is None or self._transport.is_closing():
            raise WorkerDied(self._name)
        number, loop = next(self._numbers), asyncio.get_running_loop()
        answer: asyncio.Future[Message] = loop.create_future()
        self._waiting[number] = answer
        self._transport.write(encode(number, command))
        deadline = loop.call_later(timeout_s, _expire, answer)
        try:
            return await answer
        finally:
            deadline.cancel()
            self._waiting.pop(number, None)

    def fail(self) -> None:
        """Tell all that wait that no answer will come."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(WorkerDied(self._name))

    async def close(self) -> None:
        """Returns when the socket is closed. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
            await asyncio.shield(self._lost)

    # --- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            while (body := self._next_body()) is not None:
                number, message = decode(body)
                waiting = self._waiting.pop(number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
        except ValueError:
            log.exception("%s broke the control protocol and is ended.", self._name)
            assert self._transport is not None
            self._transport.abort()

    def _next_body(self) -> bytes | None:
        """The next whole frame's; None until more is received. Raises ValueError."""
        if len(self._received) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._received)
        if length > MESSAGE_BYTES_MAX:
            raise ValueError(f"a control message of {length} bytes")
        if len(self._received) < LENGTH.size + length:
            return None
        body = bytes(self._received[LENGTH.size : LENGTH.size + length])
        del self._received[: LENGTH.size + length]
        return body

    def connection_lost(self, error: Exception | None) -> None:
        self._lost.set_result(None)
        self._on_end()
        self.fail()


def _expire(answer: asyncio.Future[Message]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
