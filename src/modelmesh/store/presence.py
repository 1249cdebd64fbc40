"""Keys that are in the store as long as this process lives: bound to a lease, and put again under a new one when it was lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from modelmesh.errors import StoreUnavailable
from modelmesh.store.protocol import Lease, Store, Txn

RETRY_S: Final = 1.0

log = logging.getLogger(__name__)


class Presence:
    """`start` first, `stop` last. One owner, the event loop. A few keys: they are written in one transaction."""

    def __init__(self, store: Store, ttl_s: float) -> None:
        """`ttl_s`: how long the keys stay when this process dies."""
        self._store = store
        self._ttl_s = ttl_s
        self._values: dict[str, bytes] = {}
        self._unwritten: set[str] = set()
        self._changed = asyncio.Event()
        self._lease: Lease | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, values: Mapping[str, bytes]) -> None:
        """Returns when they are stored. Raises StoreUnavailable."""
        self._values.update(values)
        await self._write()
        self._task = asyncio.create_task(self._keep(), name="presence")

    def put(self, key: str, value: bytes) -> None:
        """Change or add a key. It is stored soon, and tried again until it is."""
        if self._values.get(key) != value:
            self._values[key] = value
            self._unwritten.add(key)
            self._changed.set()

    async def stop(self) -> None:
        """The keys vanish at once if the store answers, else when the lease runs out. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.close()

    async def _keep(self) -> None:
        failing = False
        while True:
            try:
                await self._write()
                if failing:
                    log.info("This instance is known in the store again.")
                failing = False
                await self._news()
            except StoreUnavailable as error:
                if not failing:
                    log.warning("This instance is not known in the store until it answers: %s", error)
                failing = True
                await asyncio.sleep(RETRY_S)

    async def _write(self) -> None:
        """Store what is not stored; all of it, under a new lease, when there is none or it was lost."""
        if self._lease is None or self._lease.lost:
            self._lease = await self._store.lease(self._ttl_s)
            self._unwritten.update(self._values)
        self._changed.clear()
        writing = {key: self._values[key] for key in self._unwritten}
        if writing:
            await self._store.commit(Txn(puts=writing, lease=self._lease))
            self._unwritten = {key for key in self._unwritten if self._values[key] != writing.get(key)}

    async def _news(self) -> None:
        """Until something is to be written."""
        assert self._lease is not None
        waiting = [asyncio.create_task(self._lease.wait_lost()), asyncio.create_task(self._changed.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
