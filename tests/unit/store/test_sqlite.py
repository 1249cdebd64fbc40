"""What only the SQLite store has: a file, with all that can be wrong with it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from modelmesh.errors import ModelMeshError, SettingsError, StoreUnavailable
from modelmesh.store.protocol import Txn
from modelmesh.store.sqlite import SQLiteStore


def with_store(path: Path, scenario: Callable[[SQLiteStore], Awaitable[None]]) -> None:
    async def main() -> None:
        store = SQLiteStore(path)
        await store.open()
        try:
            async with asyncio.timeout(30):
                await scenario(store)
        finally:
            await store.close()

    asyncio.run(main())


def refused(path: Path) -> str:
    """The sentence with which a state is refused."""

    async def main() -> str:
        store = SQLiteStore(path)
        with pytest.raises(SettingsError) as caught:
            await store.open()
        with pytest.raises(StoreUnavailable):
            await store.snapshot("")
        await store.close()
        return str(caught.value)

    return asyncio.run(main())


async def put(store: SQLiteStore, **values: str) -> None:
    assert (await store.commit(Txn(puts={key: value.encode() for key, value in values.items()}))).succeeded


def test_everything_is_there_when_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "registry.db"
    revisions = []

    async def first(store: SQLiteStore) -> None:
        await put(store, a="1", b="2")
        await store.commit(Txn(deletes=["a"]))
        revisions.append(await store.revision())

    async def second(store: SQLiteStore) -> None:
        assert [(entry.key, entry.value) for entry in (await store.snapshot("")).entries] == [("b", b"2")]
        revisions.append(await store.revision())

    with_store(path, first)
    with_store(path, second)
    assert revisions[0] == revisions[1], "also a deletion moves the revision for good"


def test_the_keys_of_leases_do_not_outlive_the_process(tmp_path: Path) -> None:
    async def first(store: SQLiteStore) -> None:
        await store.commit(Txn(puts={"member": b"me"}, lease=await store.lease(10)))
        await put(store, kept="1")

    async def second(store: SQLiteStore) -> None:
        assert [entry.key for entry in (await store.snapshot("")).entries] == ["kept"]

    with_store(tmp_path / "r.db", first)
    with_store(tmp_path / "r.db", second)


def test_a_second_store_on_the_same_file_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "r.db"

    async def scenario(store: SQLiteStore) -> None:
        with pytest.raises(SettingsError, match=rf"in use by process {os.getpid()}.*--state"):
            await SQLiteStore(path).open()
        await put(store, still="mine")

    with_store(path, scenario)
    assert not list(tmp_path.glob("*.lock"))

    async def again(store: SQLiteStore) -> None:
        assert len((await store.snapshot("")).entries) == 1

    with_store(path, again)


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    die = (
        "import asyncio, os, sys, pathlib\n"
        "from modelmesh.store.sqlite import SQLiteStore\n"
        "async def main():\n"
        "    await SQLiteStore(pathlib.Path(sys.argv[1])).open()\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", die, str(path)], timeout=30).returncode == -9
    assert path.with_name("r.db.lock").exists()

    async def scenario(store: SQLiteStore) -> None:
        await put(store, a="1")

    with_store(path, scenario)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_bytes(b"Dear diary, " * 1000)
    assert str(path) in refused(path)
    assert path.read_bytes().startswith(b"Dear diary"), "it is left as it was"
    assert not list(tmp_path.glob("*.lock"))


def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    assert "another program" in refused(path)


def test_a_database_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "r.db"

    async def nothing(store: SQLiteStore) -> None:
        pass

    with_store(path, nothing)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "newer modelmesh" in refused(path)


def test_a_damaged_database_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.db"

    async def fill(store: SQLiteStore) -> None:
        await store.commit(Txn(puts={f"key-{n:05}": b"v" * 200 for n in range(2000)}))

    with_store(path, fill)
    raw = bytearray(path.read_bytes())
    raw[8192:-4096] = b"\xa5" * (len(raw) - 8192 - 4096)
    path.write_bytes(raw)

    async def read() -> None:
        store = SQLiteStore(path)
        try:
            await store.open()
            await store.snapshot("")
        finally:
            await store.close()

    with pytest.raises(ModelMeshError, match=r"cannot be (read|used)"):
        asyncio.run(read())


@pytest.mark.parametrize("place", ["file/r.db", "folder"])
def test_a_place_that_cannot_be_used(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    assert "--state" in refused(tmp_path / place)


def test_a_full_disk_refuses_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "r.db"

    async def scenario(store: SQLiteStore) -> None:
        await put(store, before="1")
        start = await store.revision()
        await store._do(lambda connection: connection.execute("PRAGMA max_page_count = 20").fetchone())
        commits = await asyncio.gather(
            *(store.commit(Txn(puts={f"big{n}": bytes(20_000)})) for n in range(8)), return_exceptions=True
        )
        lost = [n for n, commit in enumerate(commits) if isinstance(commit, StoreUnavailable)]
        assert lost, "some did not fit"
        assert all("written" in str(commits[n]) for n in lost)
        await store._do(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchone())
        await put(store, after="1")
        kept = {entry.key for entry in (await store.snapshot("")).entries}
        assert kept == {"before", "after"} | {f"big{n}" for n in range(8) if n not in lost}
        seen = set()
        async for batch in store.watch("", start):
            seen |= {change.key for change in batch.changes}
            if batch.revision == await store.revision():
                break
        assert seen == kept - {"before"}

    with_store(path, scenario)


def test_a_stalled_disk_has_a_deadline(tmp_path: Path) -> None:
    import time

    async def main() -> None:
        store = SQLiteStore(tmp_path / "r.db", timeout_s=0.2)
        await store.open()
        stalled = asyncio.create_task(store._do(lambda connection: time.sleep(1)))
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await store.snapshot("")
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await stalled
        await store.close()

    asyncio.run(main())


def test_many_commits_share_a_sync(tmp_path: Path) -> None:
    async def scenario(store: SQLiteStore) -> None:
        statements: list[str] = []
        await store._do(lambda connection: connection.set_trace_callback(statements.append))
        await asyncio.gather(*(put(store, **{f"k{n}": "v"}) for n in range(200)))
        await store._do(lambda connection: connection.set_trace_callback(None))
        assert len((await store.snapshot("k")).entries) == 200
        assert statements.count("COMMIT") < 20

    with_store(tmp_path / "r.db", scenario)


def test_every_commit_is_synced(tmp_path: Path) -> None:
    async def scenario(store: SQLiteStore) -> None:
        assert await store._do(lambda connection: connection.execute("PRAGMA synchronous").fetchone()) == (2,)
        assert await store._do(lambda connection: connection.execute("PRAGMA journal_mode").fetchone()) == (
            "wal",
        )

    with_store(tmp_path / "r.db", scenario)
