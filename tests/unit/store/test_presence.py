"""Keys that live as long as their owner, on a store that loses leases and is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from modelmesh.errors import StoreUnavailable
from modelmesh.store.memory import MemoryLease, MemoryStore
from modelmesh.store.presence import RETRY_S, Presence
from modelmesh.store.protocol import Lease
from modelmesh.testing.loop import run

TTL_S = 10.0


class Leasing(MemoryStore):
    """Remembers the leases it granted."""

    def __init__(self) -> None:
        super().__init__()
        self.granted: list[MemoryLease] = []

    async def lease(self, ttl_s: float) -> Lease:
        lease = await super().lease(ttl_s)
        assert isinstance(lease, MemoryLease)
        self.granted.append(lease)
        return lease

    async def values(self) -> dict[str, bytes]:
        return {entry.key: entry.value for entry in (await self.snapshot("")).entries}


def scenario(what: Callable[[Leasing, Presence], Awaitable[None]]) -> None:
    async def main() -> None:
        store = Leasing()
        presence = Presence(store, TTL_S)
        await what(store, presence)
        await presence.stop()
        await presence.stop()
        store.outage = ""
        assert await store.values() == {}

    run(main())


def test_keys_come_back_under_a_new_lease() -> None:
    async def what(store: Leasing, presence: Presence) -> None:
        await presence.start({"members/a": b"1"})
        assert await store.values() == {"members/a": b"1"}
        presence.put("members/a", b"2")
        presence.put("other", b"3")
        await asyncio.sleep(0.1)
        assert await store.values() == {"members/a": b"2", "other": b"3"}
        for _ in range(3):
            store.granted[-1].abandon()
            await asyncio.sleep(TTL_S + 0.1)
            assert await store.values() == {"members/a": b"2", "other": b"3"}
        assert len(store.granted) == 4

    scenario(what)


def test_what_changes_during_an_outage_is_stored_after_it() -> None:
    async def what(store: Leasing, presence: Presence) -> None:
        await presence.start({"members/a": b"1"})
        store.outage = "The store is away."
        presence.put("members/a", b"2")
        store.granted[-1].abandon()
        await asyncio.sleep(TTL_S + 5)
        presence.put("members/a", b"3")
        await asyncio.sleep(5)
        store.outage = ""
        await asyncio.sleep(RETRY_S + 0.1)
        assert await store.values() == {"members/a": b"3"}

    scenario(what)


def test_a_start_without_a_store_says_so() -> None:
    async def what(store: Leasing, presence: Presence) -> None:
        store.outage = "The store is away."
        with pytest.raises(StoreUnavailable):
            await presence.start({"members/a": b"1"})

    scenario(what)


def test_what_is_put_as_it_is_writes_nothing() -> None:
    async def what(store: Leasing, presence: Presence) -> None:
        await presence.start({"members/a": b"1"})
        before = await store.revision()
        presence.put("members/a", b"1")
        await asyncio.sleep(1)
        assert await store.revision() == before

    scenario(what)
