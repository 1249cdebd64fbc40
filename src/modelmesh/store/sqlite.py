"""The store on one machine: a SQLite file that survives kill -9 and power loss.

One thread owns the connection. Transactions that wait together are written in one SQLite transaction with one sync to
disk (group commit), and each is acknowledged only after it (WAL, synchronous=FULL: https://sqlite.org/pragma.html).
The history for watches is kept in the process: whoever watched before a restart takes a new snapshot anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from modelmesh.errors import LeaseLost, ModelMeshError, SettingsError, StoreUnavailable
from modelmesh.store.history import KEPT_CHANGES, History
from modelmesh.store.keys import check_keys
from modelmesh.store.lockfile import LockFile
from modelmesh.store.protocol import Batch, Change, Commit, Entry, Lease, Revision, Snapshot, Txn

APPLICATION_ID: Final = 0x4D4D5354
"""Marks the file as ours ("MMST" in its header)."""
SCHEMA_VERSION: Final = 1
SCHEMA: Final = (
    "CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, "
    "lease INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX leased ON entries (lease) WHERE lease != 0",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO counters VALUES ('revision', 1)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
GROUP_COMMIT_JOBS: Final = 256
WAITING_JOBS: Final = 10_000
TXN_KEYS_MAX: Final = 10_000
"""So that no transaction keeps the others of its group waiting for long."""
LAST_KEY: Final = "\U0010ffff"

T = TypeVar("T")
log = logging.getLogger(__name__)


class SQLiteLease:
    """As alive as the process that holds it: the keys of a process that died are gone when the file is opened again."""

    def __init__(self, store: SQLiteStore, lease_id: int) -> None:
        self._store = store
        self._id = lease_id
        self.ended = False

    @property
    def id(self) -> int:
        return self._id

    @property
    def lost(self) -> bool:
        return False

    async def wait_lost(self) -> None:
        await asyncio.Event().wait()  # the process would have to die first

    async def close(self) -> None:
        if not self.ended:
            self.ended = True
            await self._store.end_lease(self._id)


@dataclass(slots=True)
class _Job:
    """Something for the thread: a transaction, or a call on the connection outside of any."""

    work: Txn | Callable[[sqlite3.Connection], Any]
    answer: asyncio.Future[Any]
    result: Any = None
    error: ModelMeshError | None = None
    changes: list[Change] = field(default_factory=list)


class SQLiteStore:
    """The file at `path` (its folder is created), locked against a second process by `<path>.lock`."""

    def __init__(self, path: Path, *, kept_changes: int = KEPT_CHANGES, timeout_s: float = 30.0) -> None:
        """`timeout_s` bounds every call, so that a disk that hangs is told instead of waited for."""
        self._path = path
        self._timeout_s = timeout_s
        self._kept_changes = kept_changes
        self._lock = LockFile(path.with_name(path.name + ".lock"))
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._lease_ids = itertools.count(1)
        self._leases: set[int] = set()
        self._revision = Revision(0)
        """The thread's: the revision of the newest commit on disk."""

    @property
    def txn_keys_max(self) -> int:
        return TXN_KEYS_MAX

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = self._loop.create_future()
        self._thread = threading.Thread(target=self._serve, args=(opened,), name="store", daemon=True)
        self._thread.start()
        revision = await self._answer(opened)
        self._history = History(revision, self._kept_changes)

    async def snapshot(self, prefix: str, *, after: str = "", limit: int = 0) -> Snapshot:
        def read(connection: sqlite3.Connection) -> Snapshot:
            bound = ("key > ?", after) if after >= prefix else ("key >= ?", prefix)
            rows = connection.execute(
                f"SELECT key, value, revision FROM entries WHERE {bound[0]} AND key <= ? ORDER BY key LIMIT ?",
                (bound[1], prefix + LAST_KEY, limit or -1),
            )
            return Snapshot(self._revision, [Entry(*row) for row in rows])

        check_keys((prefix, after))
        return await self._do(read)

    async def revision(self) -> Revision:
        self._check_open()
        return self._history.revision

    def watch(self, prefix: str, after: Revision) -> AsyncIterator[Batch]:
        self._check_open()
        return self._history.watch(prefix, after)

    async def commit(self, txn: Txn) -> Commit:
        if txn.lease is not None and txn.lease.id not in self._leases:
            raise LeaseLost(f"Lease {txn.lease.id} has ended; its keys are gone.")
        check_keys((*txn.compares, *txn.puts, *txn.deletes))
        outcome: Commit = await self._submit(txn)
        return outcome

    async def lease(self, ttl_s: float) -> Lease:
        self._check_open()
        lease_id = next(self._lease_ids)
        self._leases.add(lease_id)
        return SQLiteLease(self, lease_id)

    async def end_lease(self, lease_id: int) -> None:
        """Delete the keys of a lease. Those of a closed store go when it is opened again."""
        self._leases.discard(lease_id)
        if self._thread is not None and not self._closing:
            keys = await self._do(lambda connection: _leased_keys(connection, lease_id))
            if keys:
                await self._submit(Txn(deletes=keys))

    async def close(self) -> None:
        if self._thread is None or self._closing:
            return
        self._closing = True
        self._leases.clear()
        self._history.close()
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, self._timeout_s)

    def _check_open(self) -> None:
        if self._thread is None or self._closing:
            raise StoreUnavailable(f"The store {self._path} is not open.")

    async def _do(self, read: Callable[[sqlite3.Connection], T]) -> T:
        result: T = await self._submit(read)
        return result

    async def _submit(self, work: Txn | Callable[[sqlite3.Connection], Any]) -> Any:
        self._check_open()
        if self._jobs.qsize() >= WAITING_JOBS:
            raise StoreUnavailable(
                f"More than {WAITING_JOBS} calls wait for the store {self._path}: try later."
            )
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put(_Job(work, answer))
        return await self._answer(answer)

    async def _answer(self, answer: asyncio.Future[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError:
            raise StoreUnavailable(
                f"The state file {self._path} did not answer within {self._timeout_s:g} s. Is its disk stalled?"
            ) from None

    # What follows runs on the thread, up to `_deliver`.

    def _serve(self, opened: asyncio.Future[Any]) -> None:
        try:
            connection = self._connect()
        except ModelMeshError as error:
            self._post(self._fail_open, opened, error)
            return
        self._post(opened.set_result, self._revision)
        try:
            running = True
            while running:
                jobs, running = self._take()
                try:
                    self._work(connection, jobs)
                except Exception as error:
                    log.exception("The store %s met an unexpected error.", self._path)
                    for job in jobs:
                        job.error = StoreUnavailable(f"The store {self._path} failed: {error!r}.")
                if not self._post(self._deliver, jobs):
                    break
        finally:
            connection.close()
            self._lock.release()

    def _take(self) -> tuple[list[_Job], bool]:
        """Everything that waits, at least one job; and whether to go on after it."""
        jobs: list[_Job] = []
        while len(jobs) < GROUP_COMMIT_JOBS:
            try:
                job = self._jobs.get(block=not jobs)
            except Empty:
                break
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, True

    def _post(self, call: Callable[..., None], *arguments: object) -> bool:
        """Call on the event loop. False when it is gone: then nobody waits for us any more."""
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            return False
        return True

    def _connect(self) -> sqlite3.Connection:
        """Raises SettingsError with a sentence for every way in which a file can be unusable."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(str(self._path))
        except OSError as error:
            raise SettingsError(
                f"The state file {self._path} cannot be used: {error.strerror or error}. Name another with --state."
            ) from error
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
            self._prepare(connection)
        except (sqlite3.Error, SettingsError) as error:
            if connection is not None:
                connection.close()
            self._lock.release()
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(
                f"The state file {self._path} cannot be used: {error}. Move it away to start with an empty one, "
                "or name another with --state."
            ) from error
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application_id != APPLICATION_ID:
            raise SettingsError(
                f"The state file {self._path} belongs to another program. Name another with --state."
            )
        if version > SCHEMA_VERSION:
            raise SettingsError(
                f"The state file {self._path} was written by a newer modelmesh (its format is {version}, this program "
                f"knows {SCHEMA_VERSION}). Upgrade, or name another with --state."
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("BEGIN IMMEDIATE")
        if not tables:
            for statement in SCHEMA:
                connection.execute(statement)
        self._revision = _stored_revision(connection)
        if dead := _leased_keys(connection, None):
            self._apply(connection, Txn(deletes=dead))
            _store_revision(connection, self._revision)
        connection.execute("COMMIT")

    def _work(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        self._commit_group(connection, [job for job in jobs if isinstance(job.work, Txn)])
        for job in jobs:
            if not isinstance(job.work, Txn):
                try:
                    job.result = job.work(connection)
                except sqlite3.Error as error:
                    job.error = StoreUnavailable(f"The state file {self._path} cannot be read: {error}.")

    def _commit_group(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        """Apply the transactions in order and sync once. All fail together when the disk fails."""
        if not jobs:
            return
        before = self._revision
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._revision = before = _stored_revision(connection)
            for job in jobs:
                assert isinstance(job.work, Txn)
                job.result, job.changes = self._apply(connection, job.work)
            if self._revision != before:
                _store_revision(connection, self._revision)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # the error that led here is the one to tell
                    connection.execute("ROLLBACK")
            self._revision = before
            for job in jobs:
                job.changes = []
                job.error = StoreUnavailable(
                    f"The state file {self._path} cannot be written: {error}. Nothing was changed; is its disk full?"
                )

    def _apply(self, connection: sqlite3.Connection, txn: Txn) -> tuple[Commit, list[Change]]:
        current: dict[str, Entry] = {}
        for key in txn.compares:
            row = connection.execute(
                "SELECT key, value, revision FROM entries WHERE key = ?", (key,)
            ).fetchone()
            if row is not None:
                current[key] = Entry(*row)
        for key, expected in txn.compares.items():
            if expected != (current[key].revision if key in current else 0):
                return Commit(False, self._revision, current), []
        revision = Revision(self._revision + 1)
        lease_id = 0 if txn.lease is None else txn.lease.id
        connection.executemany(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)",
            ((key, value, revision, lease_id) for key, value in txn.puts.items()),
        )
        changes = [Change(key, value, revision) for key, value in txn.puts.items()]
        for key in txn.deletes:
            if connection.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount:
                changes.append(Change(key, None, revision))
        if changes:
            self._revision = revision
        return Commit(True, self._revision), changes

    # Back on the event loop.

    def _fail_open(self, opened: asyncio.Future[Any], error: ModelMeshError) -> None:
        self._thread = None
        if not opened.done():
            opened.set_exception(error)

    def _deliver(self, jobs: list[_Job]) -> None:
        """Feed the watches first, so that whoever is answered finds its own change in them."""
        for job in jobs:
            if job.changes:
                committed = job.changes[0].revision
                if committed != self._history.revision + 1:
                    # A commit that failed on its way to us was on disk after all.
                    self._history.forget(Revision(committed - 1))
                self._history.append(committed, job.changes)
        for job in jobs:
            if not job.answer.done():
                if job.error is not None:
                    job.answer.set_exception(job.error)
                else:
                    job.answer.set_result(job.result)


def _stored_revision(connection: sqlite3.Connection) -> Revision:
    row = connection.execute("SELECT value FROM counters WHERE name = 'revision'").fetchone()
    return Revision(row[0])


def _store_revision(connection: sqlite3.Connection, revision: Revision) -> None:
    connection.execute("UPDATE counters SET value = ? WHERE name = 'revision'", (revision,))


def _leased_keys(connection: sqlite3.Connection, lease_id: int | None) -> list[str]:
    """The keys of one lease; with None of any."""
    rows = connection.execute(
        "SELECT key FROM entries WHERE lease != 0 AND (? IS NULL OR lease = ?)", (lease_id,) * 2
    )
    return [key for (key,) in rows]
