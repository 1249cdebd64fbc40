"""The queue of events."""

from __future__ import annotations

import asyncio

from modelmesh.runtime.events import Events
from modelmesh.runtime.protocol import CapacityChanged, CopyLost, SizeChanged


def test_events_come_in_order_and_once() -> None:
    async def scenario() -> None:
        events = Events()
        events.put(CopyLost("a", "gone"))
        events.put(SizeChanged("b", 1))
        assert await events.take() == [CopyLost("a", "gone"), SizeChanged("b", 1)]
        waiting = asyncio.create_task(events.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        events.put(SizeChanged("c", 2))
        assert await asyncio.wait_for(waiting, 5) == [SizeChanged("c", 2)]

    asyncio.run(scenario())


def test_only_the_newest_capacity_is_told() -> None:
    async def scenario() -> None:
        events = Events()
        for number in range(1000):
            events.put(CapacityChanged(number, 0, ""))
        events.put(SizeChanged("a", 1))
        events.put(CapacityChanged(1000, 0, ""))
        assert await events.take() == [SizeChanged("a", 1), CapacityChanged(1000, 0, "")]

    asyncio.run(scenario())
