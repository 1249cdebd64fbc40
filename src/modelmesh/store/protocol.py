"""The Store protocol: a small ordered key-value store with revisions, watches, transactions and leases.

Keys are str, values bytes. A revision is a positive int that grows with every commit that changes something and orders
everything. Semantics are etcd's (https://etcd.io/docs/v3.5/learning/api/), which is the mesh's store; memory and SQLite pass the
same contract suite (`tests/contract/test_store.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NewType, Protocol

Revision = NewType("Revision", int)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value. `revision` is that of its last modification."""

    key: str
    value: bytes
    revision: Revision


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries under a prefix as of one revision, ordered by key."""

    revision: Revision
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Change:
    """A key was put (`value`) or deleted (`value is None`) at `revision`."""

    key: str
    value: bytes | None
    revision: Revision


@dataclass(frozen=True, slots=True)
class Batch:
    """What a watch yields: every change under its prefix up to and including `revision`, since the batch before. `changes` is
    empty when only keys outside the prefix changed."""

    revision: Revision
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Txn:
    """All or nothing. `compares` maps a key to the revision of its last modification that must hold, 0 for "must not
    exist". `puts` and `deletes` are applied when all compares hold; a key may be in one of them only. Deleting a
    key that does not exist is no change. With `lease`, the keys put vanish when that lease ends."""

    compares: Mapping[str, int] = field(default_factory=dict)
    puts: Mapping[str, bytes] = field(default_factory=dict)
    deletes: Sequence[str] = ()
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """The outcome. When `succeeded` is False nothing changed and `current` holds the compared keys as they are now
    (absent keys are left out), so the caller can recompute without another read."""

    succeeded: bool
    revision: Revision
    current: Mapping[str, Entry] = field(default_factory=dict)


class Compacted(Exception):
    """The revision asked for is no longer kept: take a new snapshot and watch from its revision."""


class Lease(Protocol):
    """A promise to be alive, kept until closed. `lost` becomes True when it ran out despite that."""

    @property
    def id(self) -> int: ...

    @property
    def lost(self) -> bool: ...

    async def wait_lost(self) -> None:
        """Return once it is lost. Never returns for one that was closed before."""

    async def close(self) -> None:
        """End the lease now; its keys vanish. Idempotent."""


class Store(Protocol):
    """See the module docstring. Every call may raise `StoreUnavailable`; then it is unknown whether a commit took
    place, and the caller reads again."""

    @property
    def txn_keys_max(self) -> int:
        """The most keys a transaction may compare, and the most it may put and delete."""

    async def open(self) -> None:
        """Connect or create. Raises StoreUnavailable or SettingsError with a sentence that says what to do."""

    async def snapshot(self, prefix: str, *, after: str = "", limit: int = 0) -> Snapshot:
        """The entries whose key starts with `prefix` and is above `after`, ordered, at one revision; at most `limit` of them
        (0: all). Empty when there are none. Pages read one after the other have revisions of their own: who
        pages watches from the first page's revision and keeps, of two values of a key, the one with the later revision."""

    async def revision(self) -> Revision:
        """The current revision, linearizable."""

    def watch(self, prefix: str, after: Revision) -> AsyncIterator[Batch]:
        """Every change under `prefix` with a revision above `after`, in order, in batches that never split a commit.
        Resumes after interruptions on its own. Raises Compacted when `after` is too old. Ends when the store is closed.
        Once `revision()` has returned R, every open watch soon yields a batch of at least R, an empty one if need be."""

    async def commit(self, txn: Txn) -> Commit:
        """Apply a transaction. When this returns with `succeeded`, the change survives kill -9 and power loss. Raises
        PayloadTooLarge when the store takes less at once: nothing was changed, and fewer keys may do."""

    async def lease(self, ttl_s: float) -> Lease:
        """A new lease, kept alive in the background until closed."""

    async def close(self) -> None:
        """Release everything; open leases end. Idempotent."""
