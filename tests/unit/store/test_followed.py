"""Values under a prefix, followed through changes, outages and compaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from modelmesh.errors import StoreUnavailable
from modelmesh.store.followed import Followed
from modelmesh.store.memory import MemoryStore
from modelmesh.store.protocol import Batch, Compacted, Revision, Txn
from modelmesh.testing.loop import run


class Told:
    """What was told, and what came of it."""

    def __init__(self, store: MemoryStore) -> None:
        self.changes: list[dict[str, bytes | None]] = []
        self.followed = Followed(store, "config/", "Tests", self._told)

    def _told(self, changed: Mapping[str, bytes | None]) -> None:
        self.changes.append(dict(changed))


async def put(store: MemoryStore, **values: bytes | None) -> int:
    puts = {f"config/{name}": value for name, value in values.items() if value is not None}
    deletes = [f"config/{name}" for name, value in values.items() if value is None]
    return (await store.commit(Txn(puts=puts, deletes=deletes))).revision


def test_what_is_there_and_what_changes_is_told_once() -> None:
    async def scene() -> None:
        store = MemoryStore()
        await store.open()
        await put(store, a=b"1", b=b"2")
        await store.commit(Txn(puts={"elsewhere/c": b"3"}))
        told = Told(store)
        await told.followed.read()
        assert told.changes == [{"a": b"1", "b": b"2"}]
        await told.followed.read()
        following = asyncio.create_task(told.followed.follow())
        await put(store, a=b"9", b=None)
        await asyncio.sleep(0.1)
        await put(store, c=b"3")
        await asyncio.sleep(0.1)
        assert told.changes[1:] == [{"a": b"9", "b": None}, {"c": b"3"}]
        assert told.followed.values == {"a": b"9", "c": b"3"}
        following.cancel()
        await store.close()

    run(scene())


def test_what_is_changed_here_counts_at_once_and_older_news_do_not_undo_it() -> None:
    async def scene() -> None:
        store = MemoryStore()
        await store.open()
        told = Told(store)
        await told.followed.read()
        await put(store, a=b"theirs")
        revision = await put(store, a=b"ours")
        told.followed.changed_here("a", b"ours", revision)
        assert told.followed.values == {"a": b"ours"}
        following = asyncio.create_task(told.followed.follow())
        await asyncio.sleep(0.1)
        assert told.changes == [{"a": b"ours"}]
        await put(store, a=None)
        await asyncio.sleep(0.1)
        assert told.changes == [{"a": b"ours"}, {"a": None}]
        told.followed.changed_here("a", b"late", revision)
        assert told.followed.values == {}
        following.cancel()
        await store.close()

    run(scene())


@pytest.mark.parametrize("trouble", [StoreUnavailable("It is away."), Compacted()])
def test_nothing_is_missed_while_the_store_is_away(trouble: Exception) -> None:
    class Troubled(MemoryStore):
        broken = True

        def watch(self, prefix: str, after: Revision) -> AsyncIterator[Batch]:
            if self.broken:
                self.broken = False
                raise trouble
            return super().watch(prefix, after)

    async def scene() -> None:
        store = Troubled()
        await store.open()
        await put(store, a=b"1", b=b"1")
        told = Told(store)
        await told.followed.read()
        following = asyncio.create_task(told.followed.follow())
        await put(store, a=b"2", b=None)
        await asyncio.sleep(3.0)
        await put(store, c=b"3")
        await asyncio.sleep(0.1)
        assert told.followed.values == {"a": b"2", "c": b"3"}
        following.cancel()
        await store.close()

    run(scene())
