"""Beside the predecessor: while instances of it are alive, the registry is theirs, and only read here.

Each of them keeps a key under `instances/` while it lives (reference mesh.md 2.1). Two programs with different rules must not
both move vmodels and delete models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from modelmesh.journal import Did, Journal
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.registry.survey import INSTANCES
from modelmesh.store.followed import Followed
from modelmesh.store.protocol import Store


class Coexistence:
    """`start` before anything writes, `stop` last. One owner, the event loop."""

    def __init__(self, store: Store, registrar: Registrar, journal: Journal) -> None:
        self._registrar = registrar
        self._journal = journal
        self._followed = Followed(store, INSTANCES, "Instances of the predecessor", self._look)
        self._alive = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Keep the registrar from writing as long as there are such instances, from now on. Raises StoreUnavailable."""
        await self._followed.read()
        self._task = asyncio.create_task(self._followed.follow(), name="instances-of-the-predecessor")

    async def stop(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _look(self, changed: Mapping[str, bytes | None]) -> None:
        before, alive = self._alive, self._followed.values
        self._alive = bool(alive)
        if alive and not before:
            first = min(alive)
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
