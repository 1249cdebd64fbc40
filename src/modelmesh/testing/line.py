"""One instance's line to the store that several share: slow, late, cut, or breaking just after a commit went through.

line = Line(MemoryStore(), random.Random(1))
line.late_s = (0.0, 0.3)        # what a watch tells arrives so much later
line.cut()                      # nothing passes until `mend`
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Final

from modelmesh.errors import StoreUnavailable
from modelmesh.store.memory import MemoryStore
from modelmesh.store.protocol import Batch, Commit, Compacted, Lease, Revision, Snapshot, Txn

PATIENCE_S: Final = 1.0
"""How long a call waits for a line that is cut."""


class Line:
    """Implements `store.protocol.Store` over a store that others use too. A watch is late by itself: what several instances are
    told of one change comes in any order, and before or after what they tell each other of it."""

    def __init__(self, store: MemoryStore, rng: random.Random) -> None:
        self._store = store
        self._rng = rng
        self.slow_s = (0.0, 0.0)
        """How long a call takes."""
        self.late_s = (0.0, 0.0)
        """How late a watch is."""
        self.lost_share = 0.0
        """Of the commits: they take place, but the answer is lost."""
        self._whole = asyncio.Event()
        self._whole.set()
        self._breaks = 0
        """How often watches were broken."""

    # --- the script -----------------------------------------------------------------------------------------

    @property
    def is_cut(self) -> bool:
        return not self._whole.is_set()

    def cut(self) -> None:
        """Nothing passes. Watches say nothing, calls fail after a while."""
        self._whole.clear()

    def mend(self) -> None:
        """It works again. Watches go on where they were, or have to begin anew."""
        if self.is_cut and self._rng.random() < 0.5:
            self._breaks += 1
        self._whole.set()

    def calm(self) -> None:
        """No more trouble than that it may be cut."""
        self.slow_s = self.late_s = (0.0, 0.0)
        self.lost_share = 0.0

    # --- Store ----------------------------------------------------------------------------------------------

    @property
    def txn_keys_max(self) -> int:
        return self._store.txn_keys_max

    async def open(self) -> None:
        await self._pass()
        await self._store.open()

    async def snapshot(self, prefix: str, *, after: str = "", limit: int = 0) -> Snapshot:
        await self._pass()
        return await self._store.snapshot(prefix, after=after, limit=limit)

    async def revision(self) -> Revision:
        await self._pass()
        return await self._store.revision()

    async def commit(self, txn: Txn) -> Commit:
        await self._pass()
        commit = await self._store.commit(txn)
        if self.lost_share and self._rng.random() < self.lost_share:
            raise StoreUnavailable("The connection to the store broke before it answered.")
        await self._pass()
        return commit

    async def lease(self, ttl_s: float) -> Lease:
        await self._pass()
        return await self._store.lease(ttl_s)

    async def close(self) -> None:
        """The others still use it."""

    async def watch(self, prefix: str, after: Revision) -> AsyncIterator[Batch]:
        begun = self._breaks
        async for batch in self._store.watch(prefix, after):
            if self.late_s[1]:
                await asyncio.sleep(self._rng.uniform(*self.late_s))
            await self._whole.wait()
            if self._breaks != begun:
                if self._rng.random() < 0.5:
                    raise Compacted("What changed meanwhile is no longer kept.")
                raise StoreUnavailable("The connection to the store broke.")
            yield batch

    async def _pass(self) -> None:
        if self.slow_s[1]:
            await asyncio.sleep(self._rng.uniform(*self.slow_s) / 2)
        if self.is_cut:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._whole.wait()
            except TimeoutError:
                raise StoreUnavailable("The store does not answer.") from None
