"""The reading half of the registrar: it fills the mirror from the store, and keeps it current."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from modelmesh.errors import StoreUnavailable
from modelmesh.registry.mirror import Changed, ChangedIds, Mirror
from modelmesh.store.protocol import Batch, Change, Compacted, Entry, Revision, Snapshot, Store

READ_ENTRIES: Final = 2_000
"""Entries read at once when mirroring. etcd counts all that follow a page, so many small pages cost it the square."""
APPLY_ENTRIES: Final = 500
"""The most that is applied in one step of the event loop."""
RETRY_S: Final = 1.0
WAIT_CURRENT_S: Final = 5.0

log = logging.getLogger(__name__)


class Follower:
    """The only one who writes to the mirror. Reads are served by that, and go on when the store is away."""

    def __init__(self, store: Store, mirror: Mirror, root: str) -> None:
        """`root` is what all keys begin with, as given to the mirror."""
        self._store = store
        self._mirror = mirror
        self._root = root
        self._listeners: list[Callable[[ChangedIds], None]] = []
        self._reading: asyncio.Task[None] | None = None
        self._advanced = asyncio.Event()
        """Set, and replaced, whenever the mirror's revision moves."""

    @property
    def mirror(self) -> Mirror:
        return self._mirror

    def on_change(self, listener: Callable[[ChangedIds], None]) -> None:
        """Call `listener` with the ids that changed, after the mirror has them. It must not block or raise."""
        self._listeners.append(listener)

    async def wait_current(self, timeout_s: float = WAIT_CURRENT_S) -> None:
        """Return once the mirror contains everything that was in the store when this was called. All who wait at a time
        share one read. Raises StoreUnavailable."""
        if self._reading is not None and not self._reading.done():
            # The read under way may have been answered before this call: only the one after it will do.
            await self._shared(self._reading, timeout_s)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_current(timeout_s), name="registry-current")
            self._reading.add_done_callback(_look_at)
        await self._shared(self._reading, timeout_s)

    async def _shared(self, reading: asyncio.Task[None], timeout_s: float) -> None:
        done, _ = await asyncio.wait({reading}, timeout=timeout_s)
        if not done:
            raise StoreUnavailable(f"The store did not answer within {timeout_s:g} s.")
        if (error := reading.exception()) is not None:
            raise error

    async def _read_current(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                revision = await self._store.revision()
                while self._mirror.revision < revision:
                    await self._advanced.wait()
        except TimeoutError:
            raise StoreUnavailable(f"The registry did not become current within {timeout_s:g} s.") from None

    async def _resync(self) -> Revision:
        """Bring the mirror in line with the store, a page at a time, the next one being read while one is applied. Returns the
        revision to watch from."""
        page = await self._store.snapshot(self._root, limit=READ_ENTRIES)
        first, after = page.revision, ""
        while len(page.entries) == READ_ENTRIES:
            last = page.entries[-1].key
            ahead = asyncio.ensure_future(self._store.snapshot(self._root, after=last, limit=READ_ENTRIES))
            try:
                await self._apply_page(page, after, last)
            finally:
                page, after = await ahead, last
        await self._apply_page(page, after, self._root + "\U0010ffff")
        self._apply((), first)
        return first

    async def _apply_page(self, page: Snapshot, after: str, last: str) -> None:
        """Take in what is stored with after < key ≤ last, a piece at a time."""
        for start in range(0, max(len(page.entries), 1), APPLY_ENTRIES):
            piece = page.entries[start : start + APPLY_ENTRIES]
            end = piece[-1].key if start + APPLY_ENTRIES < len(page.entries) else last
            await asyncio.sleep(0)
            self._apply_piece(piece, page.revision, after, end)
            after = end

    def _apply_piece(self, entries: Sequence[Entry], revision: Revision, after: str, last: str) -> None:
        """What is mirrored there and not stored any more is gone."""
        present = {entry.key for entry in entries}
        gone = [
            Change(key, None, revision)
            for key, known in self._mirror.keys_between(after, last)
            if key not in present and known < revision
        ]
        self._apply(entries)
        self._apply(gone)

    async def _follow(self, after: Revision) -> None:
        """Apply every change after `after`; begin again from a snapshot when the store no longer knows it."""
        away = False
        while True:
            try:
                if away:
                    after = await self._resync()
                    log.info("The registry is followed again.")
                    away = False
                async for batch in self._store.watch(self._root, after):
                    await self._apply_batch(batch)
                    after = batch.revision
                return
            except Compacted:
                away = True
            except StoreUnavailable as error:
                if not away:
                    log.warning("The registry is not followed until the store answers: %s", error)
                away = True
                await asyncio.sleep(RETRY_S)

    async def _apply_batch(self, batch: Batch) -> None:
        for start in range(0, len(batch.changes), APPLY_ENTRIES):
            await asyncio.sleep(0)
            if batch.revision <= self._mirror.revision:
                return  # our own commits come back by the watch; who waited for one has applied it
            self._apply(batch.changes[start : start + APPLY_ENTRIES])
        self._apply((), batch.revision)

    def _apply(self, changes: Sequence[Changed], complete_to: int = 0) -> None:
        before = self._mirror.revision
        changed = self._mirror.apply(changes, complete_to)
        if self._mirror.revision != before:
            self._advanced.set()
            self._advanced = asyncio.Event()
        if changed:
            self._tell(changed)

    def _tell(self, changed: ChangedIds) -> None:
        for listener in self._listeners:
            listener(changed)


def _look_at(task: asyncio.Task[None]) -> None:
    """Its error is told to those who wait; when they have all gone, nobody has to be warned of it."""
    if not task.cancelled():
        task.exception()
