"""Beside the predecessor: while instances of it are alive, the registry is theirs, and only read here.

Each of them keeps a key under `instances/` while it lives (reference mesh.md 2.1). Two programs with different rules must not
both move vmodels and delete models.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from modelmesh.errors import StoreUnavailable
from modelmesh.journal import Did, Journal
from modelmesh.mesh.registrar import Registrar
from modelmesh.registry.survey import INSTANCES
from modelmesh.store.protocol import Batch, Compacted, Revision, Store

RETRY_S: Final = 1.0

log = logging.getLogger(__name__)


class Coexistence:
    """`start` before anything writes, `stop` last. One owner, the event loop."""

    def __init__(self, store: Store, registrar: Registrar, journal: Journal) -> None:
        self._store = store
        self._registrar = registrar
        self._journal = journal
        self._alive: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Keep the registrar from writing as long as there are such instances, from now on. Raises StoreUnavailable."""
        after = await self._look()
        self._task = asyncio.create_task(self._follow(after), name="instances-of-the-predecessor")

    async def stop(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _look(self) -> Revision:
        snapshot = await self._store.snapshot(INSTANCES)
        self._apply({entry.key for entry in snapshot.entries})
        return snapshot.revision

    async def _follow(self, after: Revision) -> None:
        current = True
        while True:
            try:
                if not current:
                    after = await self._look()
                    current = True
                async for batch in self._store.watch(INSTANCES, after):
                    after = batch.revision
                    self._take(batch)
                return
            except Compacted:
                current = False
            except StoreUnavailable as error:
                if current:
                    log.warning(
                        "Instances of the predecessor are not followed until the store answers: %s", error
                    )
                current = False
                await asyncio.sleep(RETRY_S)

    def _take(self, batch: Batch) -> None:
        alive = set(self._alive)
        for change in batch.changes:
            (alive.discard if change.value is None else alive.add)(change.key)
        self._apply(alive)

    def _apply(self, alive: set[str]) -> None:
        before, self._alive = self._alive, alive
        if alive and not before:
            first = min(alive).removeprefix(INSTANCES)
            self._registrar.keep_off(
                f"Instances of ModelMesh are alive in this registry ({first}{' and others' if len(alive) > 1 else ''}), so it is "
                "only read here: ask them, or stop them first."
            )
            self._journal.record(
                Did.WARNED, "", "The registry is only read here while instances of ModelMesh are alive in it."
            )
        elif before and not alive:
            self._registrar.keep_off("")
            self._journal.record(
                Did.WARNED, "", "The last instance of ModelMesh has gone; the registry is written here again."
            )
