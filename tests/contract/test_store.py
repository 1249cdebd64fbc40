"""What every store promises: one suite over all implementations."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from modelmesh.errors import InvalidInput, LeaseLost, StoreUnavailable
from modelmesh.store.etcd import EtcdStore
from modelmesh.store.etcd_connection import read_connection
from modelmesh.store.memory import MemoryStore
from modelmesh.store.protocol import Change, Compacted, Revision, Store, Txn
from modelmesh.store.sqlite import SQLiteStore
from modelmesh.testing import etcd

Scenario = Callable[[Store], Awaitable[None]]
KEPT = 50


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Etcd]:
    if why := etcd.missing():
        pytest.skip(why)
    with etcd.Etcd(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def run(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Scenario], None]:
    """Run a scenario on a fresh store, which is closed afterwards."""
    cluster: etcd.Etcd | None = request.getfixturevalue("cluster") if kind == "etcd" else None

    def make() -> Store:
        if kind == "memory":
            return MemoryStore(kept_changes=KEPT)
        if kind == "sqlite":
            return SQLiteStore(tmp_path / "state" / "registry.db", kept_changes=KEPT)
        assert cluster is not None
        return EtcdStore(read_connection(cluster.endpoints), f"/test/{uuid.uuid4().hex}/")

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            store = make()
            await store.open()
            try:
                async with asyncio.timeout(20):
                    await scenario(store)
            finally:
                await store.close()
                await store.close()

        asyncio.run(main())

    return run


@pytest.fixture
def forget(kind: str, request: pytest.FixtureRequest) -> Callable[[Revision], None]:
    """Forget the changes before a revision, as etcd does when it is told to; the others do by themselves."""
    if kind == "etcd":
        cluster: etcd.Etcd = request.getfixturevalue("cluster")
        return lambda revision: print(cluster.ctl("compact", str(revision)))
    return lambda revision: None


async def put(store: Store, **values: str) -> Revision:
    commit = await store.commit(Txn(puts={key: value.encode() for key, value in values.items()}))
    assert commit.succeeded
    return commit.revision


async def contents(store: Store, prefix: str = "") -> dict[str, bytes]:
    return {entry.key: entry.value for entry in (await store.snapshot(prefix)).entries}


@asynccontextmanager
async def watching(
    store: Store, prefix: str, after: Revision
) -> AsyncIterator[Callable[..., Awaitable[list[Change]]]]:
    """Gives a function that returns all changes seen once the watch has reached one that the store has told, or will tell."""
    seen: list[Change] = []
    watch = store.watch(prefix, after)

    async def until(revision: Revision, *, told: bool = True) -> list[Change]:
        if told:
            assert await store.revision() >= revision
        async for batch in watch:
            assert all(change.revision <= batch.revision for change in batch.changes)
            seen.extend(batch.changes)
            if batch.revision >= revision:
                break
        return seen

    try:
        yield until
    finally:
        await watch.aclose()  # type: ignore[attr-defined]


def test_a_new_store_is_empty(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        snapshot = await store.snapshot("")
        assert list(snapshot.entries) == []
        assert snapshot.revision == await store.revision() > 0

    run(scenario)


def test_entries_come_back_ordered_by_code_point(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        keys = ["m/ä", "m/z", "m/a/b", "m/a", "m/\U0001f600", "m/\uffee", "n/a", "m", "l/z"]
        await store.commit(Txn(puts={key: key.encode() for key in keys}))
        got = [entry.key for entry in (await store.snapshot("m/")).entries]
        assert got == sorted(key for key in keys if key.startswith("m/"))
        assert len((await store.snapshot("")).entries) == len(keys)

    run(scenario)


def test_pages_make_up_the_whole(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        keys = [f"p/{n:02}" for n in range(25)]
        await store.commit(Txn(puts=dict.fromkeys([*keys, "o/1", "q/1"], b"v")))
        got: list[str] = []
        after = ""
        while page := [entry.key for entry in (await store.snapshot("p/", after=after, limit=10)).entries]:
            assert len(page) <= 10
            got += page
            after = page[-1]
        assert got == keys

    run(scenario)


def test_revisions_grow_and_mark_the_last_change_of_a_key(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        first = await put(store, a="1", b="1")
        second = await put(store, a="2")
        assert second > first
        assert {entry.key: entry.revision for entry in (await store.snapshot("")).entries} == {
            "a": second,
            "b": first,
        }
        assert await store.revision() == second

    run(scenario)


def test_what_changes_nothing_leaves_the_revision(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        before = await put(store, a="1")
        commit = await store.commit(Txn(deletes=["absent"]))
        assert commit.succeeded
        assert commit.revision == before
        assert (await store.commit(Txn(compares={"a": before}))).succeeded
        assert await store.revision() == before

    run(scenario)


def test_a_commit_is_all_or_nothing(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        revision = await put(store, a="1", b="1", c="1")
        stale = await store.commit(
            Txn(
                compares={"a": revision, "b": revision + 7, "new": 0},
                puts={"a": b"2", "d": b"2"},
                deletes=["c"],
            )
        )
        assert not stale.succeeded
        assert stale.revision == revision
        assert {key: (entry.value, entry.revision) for key, entry in stale.current.items()} == {
            "a": (b"1", revision),
            "b": (b"1", revision),
        }
        assert await contents(store) == {"a": b"1", "b": b"1", "c": b"1"}
        good = await store.commit(
            Txn(compares={"a": revision, "new": 0}, puts={"a": b"2", "new": b"2"}, deletes=["c", "c"])
        )
        assert good.succeeded
        assert await contents(store) == {"a": b"2", "b": b"1", "new": b"2"}
        taken = await store.commit(Txn(compares={"new": 0}, puts={"new": b"3"}))
        assert not taken.succeeded
        assert taken.current["new"].value == b"2"

    run(scenario)


def test_concurrent_compares_let_one_through(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        commits = await asyncio.gather(
            *(store.commit(Txn(compares={"k": 0}, puts={"k": str(n).encode()})) for n in range(100))
        )
        winners = [n for n, commit in enumerate(commits) if commit.succeeded]
        assert len(winners) == 1
        assert await contents(store) == {"k": str(winners[0]).encode()}

    run(scenario)


def test_many_counters_lose_nothing(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        await put(store, counter="0")

        async def increment() -> None:
            while True:
                (entry,) = (await store.snapshot("counter")).entries
                value = str(int(entry.value) + 1).encode()
                if (
                    await store.commit(Txn(compares={"counter": entry.revision}, puts={"counter": value}))
                ).succeeded:
                    return

        await asyncio.gather(*(increment() for _ in range(30)))
        assert await contents(store) == {"counter": b"30"}

    run(scenario)


def test_a_watch_sees_every_change_once_in_order(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        start = await put(store, a1="old")
        async with watching(store, "a", start) as until:
            r1 = await put(store, a1="1", b1="1")
            r2 = (await store.commit(Txn(puts={"a2": b"2"}, deletes=["a1", "absent"]))).revision
            r3 = await put(store, b1="2")
            expected = [Change("a1", b"1", r1), Change("a2", b"2", r2), Change("a1", None, r2)]
            assert await until(r3) == expected
            r4 = await put(store, a2="3")
            assert await until(r4) == [*expected, Change("a2", b"3", r4)]

    run(scenario)


def test_a_waiting_watch_is_woken(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        start = await store.revision()
        async with watching(store, "", start) as until, watching(store, "z", start) as nothing:
            next_one = Revision(start + 1)
            waiting = asyncio.gather(until(next_one, told=False), nothing(next_one, told=False))
            await asyncio.sleep(0.01)
            revision = await put(store, a="1")
            assert await store.revision() == revision
            assert await waiting == [[Change("a", b"1", revision)], []]

    run(scenario)


def test_a_watch_too_far_behind_is_told(
    run: Callable[[Scenario], None], forget: Callable[[Revision], None]
) -> None:
    async def scenario(store: Store) -> None:
        start = await store.revision()
        for n in range(3):
            await store.commit(Txn(puts={f"k{n}-{i}": b"" for i in range(KEPT)}))
        forget(await store.revision())
        with pytest.raises(Compacted):
            async with watching(store, "", start) as until:
                await until(await store.revision())
        now = await store.revision()
        async with watching(store, "", Revision(now - 1)) as until:
            assert len(await until(now)) == KEPT, "the newest commit is kept, however large"

    run(scenario)


def test_closing_ends_watches_and_refuses_calls(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        async def follow() -> int:
            return sum([1 async for _ in store.watch("", await store.revision())])

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.01)
        await store.close()
        assert await following == 0
        with pytest.raises(StoreUnavailable):
            await store.snapshot("")
        with pytest.raises(StoreUnavailable):
            await put(store, a="1")

    run(scenario)


def test_the_keys_of_a_closed_lease_vanish(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        lease, other = await store.lease(10), await store.lease(10)
        assert lease.id != other.id
        await store.commit(Txn(puts={"m/1": b"1", "m/2": b"2", "m/3": b"3", "m/4": b"4"}, lease=lease))
        await store.commit(Txn(puts={"m/2": b"kept"}))
        await store.commit(Txn(puts={"m/3": b"moved"}, lease=other))
        await store.commit(Txn(deletes=["m/4"]))
        start = await store.revision()
        async with watching(store, "m/", start) as until:
            await lease.close()
            await lease.close()
            assert not lease.lost
            assert await contents(store) == {"m/2": b"kept", "m/3": b"moved"}
            end = await store.revision()
            assert await until(end) == [Change("m/1", None, end)]
        with pytest.raises(LeaseLost):
            await store.commit(Txn(puts={"m/5": b""}, lease=lease))

    run(scenario)


def test_a_key_that_is_not_unicode_is_refused(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(InvalidInput):
            await store.commit(Txn(puts={"bad\udc80": b""}))

    run(scenario)


def test_the_largest_transaction_is_taken(run: Callable[[Scenario], None]) -> None:
    async def scenario(store: Store) -> None:
        keys = [f"k{n:05}" for n in range(store.txn_keys_max)]
        assert len(keys) >= 100
        new = Txn(compares=dict.fromkeys(keys, 0), puts=dict.fromkeys(keys, b"1"))
        assert (await store.commit(new)).succeeded
        assert len(await contents(store)) == len(keys)
        again = await store.commit(new)
        assert not again.succeeded
        assert again.current.keys() == set(keys)

    run(scenario)
