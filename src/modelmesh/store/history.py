"""What changed lately: the bounded history from which the stores of one process feed their watches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from modelmesh.store.protocol import Batch, Change, Compacted, Revision

KEPT_CHANGES = 4096
"""Changes kept for watches that lag. A watch that falls behind further gets Compacted and takes a new snapshot."""


class History:
    """The last commits, oldest first, and the watches that follow them. Belongs to one event loop."""

    def __init__(self, revision: Revision, kept_changes: int = KEPT_CHANGES) -> None:
        self._revision = revision
        self._compacted = revision
        """Commits up to this revision are forgotten."""
        self._kept_changes = kept_changes
        self._commits: deque[tuple[Revision, list[Change]]] = deque()
        self._count = 0
        self._closed = False
        self._moved: set[asyncio.Event] = set()

    @property
    def revision(self) -> Revision:
        """The revision of the newest commit."""
        return self._revision

    def append(self, revision: Revision, changes: list[Change]) -> None:
        """Add a commit. The newest one is always kept, however large it is."""
        self._commits.append((revision, changes))
        self._count += len(changes)
        self._revision = revision
        while self._count > self._kept_changes and len(self._commits) > 1:
            self._compacted, forgotten = self._commits.popleft()
            self._count -= len(forgotten)
        self._wake()

    def forget(self, revision: Revision) -> None:
        """Start anew at `revision`: what led there is unknown, so every watch that has not seen it gets Compacted."""
        self._commits.clear()
        self._count = 0
        self._revision = self._compacted = revision
        self._wake()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        for moved in self._moved:
            moved.set()

    async def watch(self, prefix: str, after: Revision) -> AsyncIterator[Batch]:
        """See `Store.watch`. One batch holds whatever was committed since the last one."""
        moved = asyncio.Event()
        self._moved.add(moved)
        try:
            while not self._closed:
                if after < self._compacted:
                    raise Compacted(f"The changes after revision {after} are no longer kept.")
                if after < self._revision:
                    changes = [
                        change
                        for revision, commit in self._commits
                        if revision > after
                        for change in commit
                        if change.key.startswith(prefix)
                    ]
                    after = self._revision
                    yield Batch(after, changes)
                else:
                    moved.clear()
                    await moved.wait()
        finally:
            self._moved.discard(moved)
