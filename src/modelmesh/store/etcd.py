"""The store of a mesh: etcd, from 3.4 on, by its published API (https://etcd.io/docs/v3.5/learning/api/).

A thin client of our own, because none that is kept does TLS, passwords that are shown again, several endpoints and watches that
resume. `etcd_client` calls, `etcd_watch` follows, `etcd_lease` stays alive, `etcd_connection` says where.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Final

from modelmesh.errors import InvalidInput, LeaseLost, PayloadTooLarge, SettingsError, StoreUnavailable
from modelmesh.store.etcd_client import CALL_S, RANGE, TXN, EtcdClient
from modelmesh.store.etcd_connection import EtcdConnection
from modelmesh.store.etcd_keys import Keys
from modelmesh.store.etcd_lease import EtcdLease
from modelmesh.store.etcd_watch import EtcdWatch, Sought
from modelmesh.store.keys import check_keys
from modelmesh.store.protocol import Batch, Commit, Compacted, Entry, Lease, Revision, Snapshot, Txn
from modelmesh.wire.generated import etcd_pb2 as pb

OPEN_S: Final = 4.0
"""How long etcd may take to be reached at the start: a wrong address is told within five seconds."""
TXN_KEYS_MAX: Final = 128
"""etcd's limit of compares, and of operations, in a transaction (`--max-txn-ops`)."""
PAGE_ENTRIES: Final = 2_000
"""Entries read at once; fewer when they are so large that an answer would be too large."""
RESTARTS: Final = 3
"""How often a snapshot is begun anew because etcd was compacted meanwhile."""


class EtcdStore:
    """All keys are under `prefix`, which is not part of the keys given and told."""

    def __init__(self, connection: EtcdConnection, prefix: str, *, timeout_s: float = CALL_S) -> None:
        """`timeout_s` bounds every call, with all attempts at all endpoints."""
        self._client = EtcdClient(connection, timeout_s=timeout_s)
        self._prefix = prefix
        self._keys = Keys(prefix)
        self._sought = Sought()
        self._leases: set[EtcdLease] = set()
        self._page_entries = PAGE_ENTRIES
        self._open = False

    @property
    def txn_keys_max(self) -> int:
        return TXN_KEYS_MAX

    async def open(self) -> None:
        await self._client.open()
        self._open = True
        await self._client.check(OPEN_S)
        try:
            await self.revision()
        except StoreUnavailable as error:
            raise SettingsError(f"The registry under {self._prefix} cannot be used. {error}") from error

    async def snapshot(self, prefix: str, *, after: str = "", limit: int = 0) -> Snapshot:
        check_keys((prefix, after))
        for _ in range(RESTARTS):
            with contextlib.suppress(Compacted):
                return await self._snapshot(prefix, after, limit)
        raise StoreUnavailable(
            f"The etcd at {self._client} is compacted faster than it can be read: try again."
        )

    async def revision(self) -> Revision:
        self._check_open()
        span = self._keys.span("")
        answer = await self._client.call(
            RANGE, pb.RangeRequest(key=span.key, range_end=span.end, limit=1, keys_only=True)
        )
        self._sought.seek(answer.header.revision)
        return Revision(answer.header.revision)

    def watch(self, prefix: str, after: Revision) -> AsyncIterator[Batch]:
        self._check_open()
        check_keys((prefix,))
        return EtcdWatch(self._client, self._keys, self._keys.span(prefix), after, self._sought).batches()

    async def commit(self, txn: Txn) -> Commit:
        self._check_open()
        check_keys((*txn.compares, *txn.puts, *txn.deletes))
        deletes = tuple(dict.fromkeys(txn.deletes))
        if max(len(txn.compares), len(txn.puts) + len(deletes)) > TXN_KEYS_MAX:
            raise InvalidInput(f"A transaction of etcd compares and writes at most {TXN_KEYS_MAX} keys each.")
        lease_id = self._own(txn.lease)
        answer = await self._client.call(
            TXN,
            pb.TxnRequest(
                compare=[
                    pb.Compare(
                        target=pb.Compare.MOD,
                        result=pb.Compare.EQUAL,
                        key=self._keys.encode(key),
                        mod_revision=revision,
                    )
                    for key, revision in txn.compares.items()
                ],
                success=[*self._puts(txn, lease_id), *self._deletes(deletes)],
                failure=[
                    pb.RequestOp(request_range=pb.RangeRequest(key=self._keys.encode(key)))
                    for key in txn.compares
                ],
            ),
        )
        current: dict[str, Entry] = {}
        if not answer.succeeded:
            for response in answer.responses:
                current |= {entry.key: entry for entry in self._keys.entries(response.response_range.kvs)}
        return Commit(answer.succeeded, Revision(answer.header.revision), current)

    async def lease(self, ttl_s: float) -> Lease:
        self._check_open()
        self._leases = {lease for lease in self._leases if not lease.ended}
        lease = await EtcdLease.grant(self._client, ttl_s)
        self._leases.add(lease)
        return lease

    async def close(self) -> None:
        self._sought.close()
        leases, self._leases = self._leases, set()
        await asyncio.gather(*(lease.close() for lease in leases))
        self._open = False
        await self._client.close()

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable(f"The connection to the etcd at {self._client} is not open.")

    def _own(self, lease: Lease | None) -> int:
        if lease is None:
            return 0
        if not isinstance(lease, EtcdLease) or lease.ended:
            raise LeaseLost(f"Lease {lease.id} has ended; its keys are gone.")
        return lease.id

    def _puts(self, txn: Txn, lease_id: int) -> Iterable[pb.RequestOp]:
        return (
            pb.RequestOp(request_put=pb.PutRequest(key=self._keys.encode(key), value=value, lease=lease_id))
            for key, value in txn.puts.items()
        )

    def _deletes(self, keys: Iterable[str]) -> Iterable[pb.RequestOp]:
        return (
            pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=self._keys.encode(key)))
            for key in keys
        )

    async def _snapshot(self, prefix: str, after: str, limit: int) -> Snapshot:
        """All pages at the revision of the first. Raises Compacted when that is gone before the last."""
        self._check_open()
        span = self._keys.span(prefix, after)
        start, revision, entries, left = span.key, 0, list[Entry](), limit
        while True:
            wanted = min(self._page_entries, left) if limit else self._page_entries
            page = await self._page(
                pb.RangeRequest(key=start, range_end=span.end, limit=wanted, revision=revision)
            )
            revision = revision or page.header.revision
            entries += self._keys.entries(page.kvs)
            left -= len(page.kvs)
            if not page.more or (limit and left <= 0):
                return Snapshot(Revision(revision), entries)
            start = page.kvs[-1].key + b"\x00"

    async def _page(self, request: pb.RangeRequest) -> pb.RangeResponse:
        while True:
            try:
                return await self._client.call(RANGE, request)
            except PayloadTooLarge:
                if request.limit == 1:
                    raise
                request.limit = self._page_entries = max(1, request.limit // 2)
