"""What only the memory store has: crashes of lease holders and outages, for the simulator."""

from __future__ import annotations

import asyncio

import pytest

from modelmesh.errors import LeaseLost, StoreUnavailable
from modelmesh.store.memory import MemoryLease, MemoryStore
from modelmesh.store.protocol import Change, Txn
from modelmesh.testing.loop import run


def test_the_lease_of_a_crashed_holder_runs_out() -> None:
    async def main() -> None:
        store = MemoryStore()
        lease, other = await store.lease(5), await store.lease(5)
        assert isinstance(lease, MemoryLease)
        await store.commit(Txn(puts={"member/a": b"a"}, lease=lease))
        await store.commit(Txn(puts={"member/b": b"b"}, lease=other))
        start = await store.revision()
        await asyncio.sleep(100)
        assert len((await store.snapshot("member/")).entries) == 2, "a living holder keeps it"
        lease.abandon()
        lease.abandon()
        await asyncio.sleep(4.9)
        assert not lease.lost
        await asyncio.sleep(0.2)
        assert lease.lost
        assert not other.lost
        assert [entry.key for entry in (await store.snapshot("member/")).entries] == ["member/b"]
        async for batch in store.watch("member/", start):
            assert batch.changes == [Change("member/a", None, batch.revision)]
            break
        with pytest.raises(LeaseLost):
            await store.commit(Txn(puts={"member/a": b"again"}, lease=lease))
        await lease.close()
        assert lease.lost

    run(main())


def test_during_an_outage_every_call_fails_and_nothing_is_forgotten() -> None:
    async def main() -> None:
        store = MemoryStore()
        await store.commit(Txn(puts={"a": b"1"}))
        store.outage = "The store is away."
        for call in (store.open(), store.snapshot(""), store.revision(), store.commit(Txn()), store.lease(1)):
            with pytest.raises(StoreUnavailable, match="The store is away"):
                await call
        store.outage = ""
        assert [entry.key for entry in (await store.snapshot("")).entries] == ["a"]

    run(main())
