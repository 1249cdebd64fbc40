"""The events of a runtime on their way to the mesh: in order, never lost, the latest capacity only."""

from __future__ import annotations

import asyncio

from modelmesh.runtime.protocol import CapacityChanged, RuntimeEvent


class Events:
    """One writer, one reader, one event loop."""

    def __init__(self) -> None:
        self._waiting: list[RuntimeEvent] = []
        self._some = asyncio.Event()

    def put(self, event: RuntimeEvent) -> None:
        """Append an event. A capacity still unread is replaced: only the newest is true."""
        if isinstance(event, CapacityChanged):
            self._waiting = [other for other in self._waiting if not isinstance(other, CapacityChanged)]
        self._waiting.append(event)
        self._some.set()

    async def take(self) -> list[RuntimeEvent]:
        """Wait for at least one event; all that wait, oldest first."""
        await self._some.wait()
        self._some.clear()
        taken, self._waiting = self._waiting, []
        return taken
