"""A port that leads to another one, and what may go wrong between them."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Between:
    """Passes bytes on to `address`. `cut`: connections break, new ones are refused. `hold`: they stay, but nothing passes.
    `lose`: the same for those that there are, and for good; new ones are as any.

    async with Between("127.0.0.1:2379") as between:
        connect(between.address)
    """

    def __init__(self, address: str) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._open = True
        self._lost: list[asyncio.Event] = []
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self.accepted = 0

    async def __aenter__(self) -> Between:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self.cut()
        for flows in (*self._lost, self._flows):
            flows.set()
        if self._passing:
            await asyncio.wait(self._passing, timeout=5.0)

    def cut(self) -> None:
        self._open = False
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._open = True

    def hold(self) -> None:
        self._flows.clear()

    def go_on(self) -> None:
        self._flows.set()

    def lose(self) -> None:
        self.hold()
        self._lost.append(self._flows)
        self._flows = asyncio.Event()
        self._flows.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        self.accepted += 1
        inner_reader, inner_writer = await asyncio.open_connection(self._host, self._port)
        for source, sink in ((reader, inner_writer), (inner_reader, writer)):
            self._writers.add(sink)
            passing = asyncio.create_task(self._pass(source, sink, self._flows))
            self._passing.add(passing)
            passing.add_done_callback(self._passing.discard)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    await flows.wait()
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
