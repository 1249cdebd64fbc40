"""A store in memory: for tests, the simulator, and `--state memory`. Nothing outlives the process."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from modelmesh.errors import LeaseLost, StoreUnavailable
from modelmesh.store.history import KEPT_CHANGES, History
from modelmesh.store.keys import check_keys
from modelmesh.store.protocol import Batch, Change, Commit, Entry, Lease, Revision, Snapshot, Txn

TXN_KEYS_MAX: Final = 10_000
"""Enough for everybody: a transaction is one step of the event loop."""


class MemoryLease:
    """A lease in the process that grants it: it cannot be lost while it is kept alive."""

    def __init__(self, store: MemoryStore, lease_id: int, ttl_s: float) -> None:
        self._store = store
        self._id = lease_id
        self._ttl_s = ttl_s
        self._expiry: asyncio.TimerHandle | None = None
        self.keys: set[str] = set()
        self.ended = False
        self._closed = False
        self._lost = asyncio.Event()

    @property
    def id(self) -> int:
        return self._id

    @property
    def lost(self) -> bool:
        return self.ended and not self._closed

    async def wait_lost(self) -> None:
        await self._lost.wait()

    def abandon(self) -> None:
        """Stop keeping it alive, as the crash of its holder does: its keys vanish `ttl_s` later."""
        if self._expiry is None and not self.ended:
            self._expiry = asyncio.get_running_loop().call_later(self._ttl_s, self._store.end_lease, self)

    async def close(self) -> None:
        self._closed = not self.lost
        self._store.end_lease(self)

    def ended_now(self) -> None:
        """Mark it ended; the store has taken its keys."""
        self.ended = True
        if self.lost:
            self._lost.set()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None


class MemoryStore:
    """Deterministic and immediate: every call completes in one step of the event loop. Several users may share one."""

    def __init__(self, kept_changes: int = KEPT_CHANGES) -> None:
        self._entries: dict[str, tuple[bytes, Revision, MemoryLease | None]] = {}
        self._ordered: list[str] = []
        self._history = History(Revision(1), kept_changes)
        self._lease_ids = itertools.count(1)
        self._leases: set[MemoryLease] = set()
        self._closed = False
        self.outage = ""
        """While not empty every call fails with this sentence, as an unreachable store does; watches stay silent."""

    @property
    def txn_keys_max(self) -> int:
        return TXN_KEYS_MAX

    async def open(self) -> None:
        self._check()

    async def snapshot(self, prefix: str, *, after: str = "", limit: int = 0) -> Snapshot:
        self._check()
        start = bisect_left(self._ordered, prefix)
        if after >= prefix:
            start = bisect_right(self._ordered, after)
        entries: list[Entry] = []
        for key in itertools.islice(self._ordered, start, None):
            if not key.startswith(prefix) or (limit and len(entries) == limit):
                break
            value, revision, _ = self._entries[key]
            entries.append(Entry(key, value, revision))
        return Snapshot(self._history.revision, entries)

    def contents(self, prefix: str) -> dict[str, bytes]:
        """All values under a prefix, by key, for tests: also during an outage."""
        return {key: value for key, (value, _, _) in self._entries.items() if key.startswith(prefix)}

    async def revision(self) -> Revision:
        self._check()
        return self._history.revision

    def watch(self, prefix: str, after: Revision) -> AsyncIterator[Batch]:
        return self._history.watch(prefix, after)

    async def commit(self, txn: Txn) -> Commit:
        self._check()
        check_keys((*txn.compares, *txn.puts, *txn.deletes))
        lease = self._own(txn.lease)
        current = {
            key: Entry(key, value, revision)
            for key in txn.compares
            if (found := self._entries.get(key)) is not None
            for value, revision, _ in [found]
        }
        if any(
            revision != (current[key].revision if key in current else 0)
            for key, revision in txn.compares.items()
        ):
            return Commit(False, self._history.revision, current)
        return Commit(True, self._apply(txn.puts, txn.deletes, lease))

    async def lease(self, ttl_s: float) -> Lease:
        self._check()
        lease = MemoryLease(self, next(self._lease_ids), ttl_s)
        self._leases.add(lease)
        return lease

    async def close(self) -> None:
        if not self._closed:
            for lease in tuple(self._leases):
                self.end_lease(lease)
            self._closed = True
            self._history.close()

    def end_lease(self, lease: MemoryLease) -> None:
        """Delete the keys of a lease that was closed or ran out. Idempotent."""
        if not lease.ended:
            self._leases.discard(lease)
            self._apply({}, sorted(lease.keys), None)
            lease.ended_now()

    def _check(self) -> None:
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        if self.outage:
            raise StoreUnavailable(self.outage)

    def _own(self, lease: Lease | None) -> MemoryLease | None:
        if lease is None:
            return None
        if not isinstance(lease, MemoryLease) or lease.ended:
            raise LeaseLost(f"Lease {lease.id} has ended; its keys are gone.")
        return lease

    def _apply(
        self, puts: Mapping[str, bytes], deletes: Sequence[str], lease: MemoryLease | None
    ) -> Revision:
        revision = Revision(self._history.revision + 1)
        changes = []
        for key, value in puts.items():
            old = self._entries.get(key)
            if old is None:
                insort(self._ordered, key)
            elif old[2] is not None:
                old[2].keys.discard(key)
            if lease is not None:
                lease.keys.add(key)
            self._entries[key] = (value, revision, lease)
            changes.append(Change(key, value, revision))
        for key in deletes:
            old = self._entries.pop(key, None)
            if old is not None:
                del self._ordered[bisect_left(self._ordered, key)]
                if old[2] is not None:
                    old[2].keys.discard(key)
                changes.append(Change(key, None, revision))
        if changes:
            self._history.append(revision, changes)
        return self._history.revision
