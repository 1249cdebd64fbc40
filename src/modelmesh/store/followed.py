"""The few values under a prefix, as they are now: read, then followed through all that may happen to the store.

For prefixes that fit in memory and change seldom (members, settings). The registry has a mirror of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from modelmesh.errors import StoreUnavailable
from modelmesh.store.protocol import Compacted, Revision, Store

RETRY_S: Final = 1.0

log = logging.getLogger(__name__)


class Followed:
    """One owner, the event loop: `read` first, then `follow` in a task. While the store is away all stays as it was."""

    def __init__(
        self, store: Store, prefix: str, what: str, on_change: Callable[[Mapping[str, bytes | None]], None]
    ) -> None:
        """`on_change` is told, by name (what follows the prefix), of all that is new or other, and with None of what is gone; it
        must not raise. `what` begins sentences of the log."""
        self._store = store
        self._prefix = prefix
        self._what = what
        self._on_change = on_change
        self._values: dict[str, bytes] = {}
        self._ahead: dict[str, int] = {}
        """Names changed by this instance ahead of the watch, with their revisions: older news of them is none."""
        self._revision = 0

    @property
    def values(self) -> Mapping[str, bytes]:
        return self._values

    def key(self, name: str) -> str:
        """Where a name is in the store."""
        return self._prefix + name

    async def read(self) -> None:
        """Look at all of them. Raises StoreUnavailable."""
        snapshot = await self._store.snapshot(self._prefix)
        present = {entry.key.removeprefix(self._prefix): entry.value for entry in snapshot.entries}
        self._take({name: present.get(name) for name in [*self._values, *present]}, snapshot.revision)

    async def follow(self) -> None:
        """Watch until cancelled, or until the store is closed."""
        current = True
        while True:
            try:
                if not current:
                    await self.read()
                    log.info("%s are followed again.", self._what)
                    current = True
                async for batch in self._store.watch(self._prefix, Revision(self._revision)):
                    changes = {
                        change.key.removeprefix(self._prefix): change.value for change in batch.changes
                    }
                    self._take(changes, batch.revision)
                return
            except Compacted:
                current = False
            except StoreUnavailable as error:
                if current:
                    log.info("%s are not followed until the store answers: %s", self._what, error)
                current = False
                await asyncio.sleep(RETRY_S)

    def changed_here(self, name: str, value: bytes | None, revision: int) -> None:
        """What this instance has committed, without waiting for the watch."""
        if revision > self._revision:
            self._tell({name: value})
            self._ahead[name] = revision

    def _take(self, found: Mapping[str, bytes | None], revision: int) -> None:
        self._tell({name: value for name, value in found.items() if self._ahead.get(name, 0) <= revision})
        self._revision = max(self._revision, revision)
        self._ahead = {name: at for name, at in self._ahead.items() if at > self._revision}

    def _tell(self, found: Mapping[str, bytes | None]) -> None:
        changed = {name: value for name, value in found.items() if self._values.get(name) != value}
        for name, value in changed.items():
            if value is None:
                del self._values[name]
            else:
                self._values[name] = value
        if changed:
            self._on_change(changed)
