"""The etcd store where the contract suite does not go: clusters, TLS, rights, compaction, lost leases, restarts."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from between import Between
from certificates import Authority

from modelmesh.clock import LoopClock
from modelmesh.errors import LeaseLost, PayloadTooLarge, SettingsError, StoreUnavailable
from modelmesh.journal import Journal
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.registry.mirror import ChangedIds, Mirror
from modelmesh.store.etcd import EtcdStore
from modelmesh.store.etcd_client import OPTIONS, RANGE, EtcdClient
from modelmesh.store.etcd_connection import read_connection
from modelmesh.store.presence import Presence
from modelmesh.store.protocol import Change, Revision, Txn
from modelmesh.testing.etcd import Etcd, ServerTls, missing
from modelmesh.wire.generated import etcd_pb2 as pb

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

PREFIX = "/test/"
IN_TIME_S = 30.0


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """One that no test stops; each takes a prefix of its own."""
    with Etcd(tmp_path_factory.mktemp("single")) as etcd:
        yield etcd


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(IN_TIME_S):
            await scenario

    asyncio.run(main())


@asynccontextmanager
async def opened(where: str, prefix: str = PREFIX, **how: Any) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(read_connection(where), prefix, **how)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def insist(what: Callable[[], Awaitable[Any]]) -> Any:
    """Its result, once it is not unavailable any more."""
    while True:
        try:
            return await what()
        except StoreUnavailable:
            await asyncio.sleep(0.05)


async def put(store: EtcdStore, key: str, value: str) -> Revision:
    """Retried as a caller would who does not know whether it took place."""
    commit = await insist(lambda: store.commit(Txn(puts={key: value.encode()})))
    assert commit.succeeded
    revision: Revision = commit.revision
    return revision


class Followed:
    """A watch, read in the background."""

    def __init__(self, store: EtcdStore, after: Revision, prefix: str = "") -> None:
        self.changes: list[Change] = []
        self.revision = after
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._read(store, prefix))

    async def _read(self, store: EtcdStore, prefix: str) -> None:
        async for batch in store.watch(prefix, self.revision):
            self.changes += batch.changes
            self.revision = batch.revision
            self._moved.set()

    async def until(self, revision: int) -> list[Change]:
        while self.revision < revision:
            self._moved.clear()
            moved = asyncio.create_task(self._moved.wait())
            await asyncio.wait({moved, self._task}, return_when=asyncio.FIRST_COMPLETED)
            moved.cancel()
            if self._task.done():
                self._task.result()
        return self.changes

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def test_a_killed_leader_costs_no_change(tmp_path: Path) -> None:
    async def scenario(etcd: Etcd) -> None:
        async with opened(etcd.endpoints, timeout_s=1.5) as store:
            followed = Followed(store, await store.revision())
            expected = []
            for n in range(150):
                if n == 50:
                    etcd.leader().signal(signal.SIGKILL)
                revision = await put(store, f"k{n}", str(n))
                expected.append(f"k{n}")
            seen = await followed.until(revision)
            assert list(dict.fromkeys(change.key for change in seen)) == expected
            revisions = [change.revision for change in seen]
            assert revisions == sorted(set(revisions)), "each change once, in order"
            assert [entry.key for entry in (await store.snapshot("k")).entries] == sorted(expected)
            await followed.stop()

    with Etcd(tmp_path, members=3) as etcd:
        run(scenario(etcd))


def test_a_frozen_member_is_left_for_another(tmp_path: Path) -> None:
    async def scenario(etcd: Etcd) -> None:
        client = EtcdClient(read_connection(etcd.endpoints), attempt_timeout_s=0.5)
        await client.open()
        await client.check(5)
        try:
            read = pb.RangeRequest(key=b"k", serializable=True)
            await client.call(RANGE, read)
            frozen = etcd.servers[0]
            frozen.signal(signal.SIGSTOP)
            try:
                for _ in range(3):
                    await client.call(RANGE, read)
            finally:
                frozen.signal(signal.SIGCONT)
        finally:
            await client.close()

    with Etcd(tmp_path, members=3) as etcd:
        run(scenario(etcd))


def test_a_watch_leaves_a_frozen_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when no ping finds it out."""
    options = [(name, value) for name, value in OPTIONS if "keepalive" not in name]
    monkeypatch.setattr("modelmesh.store.etcd_client.OPTIONS", options)
    monkeypatch.setattr("modelmesh.store.etcd_watch._SILENT_S", 1.0)

    async def scenario(etcd: Etcd) -> None:
        first, *others = etcd.servers
        async with (
            opened(etcd.endpoints, timeout_s=2.0) as store,
            opened(",".join(server.endpoint for server in others)) as other,
        ):
            while etcd.leader() is first:
                await asyncio.to_thread(
                    etcd.ctl, "move-leader", await member_id(etcd), endpoint=first.endpoint
                )
            followed = Followed(store, await store.revision())
            await followed.until(await put(other, "before", "1"))
            first.signal(signal.SIGSTOP)
            try:
                revision = await put(other, "after", "1")
                assert await insist(store.revision) >= revision
                assert [change.key for change in await followed.until(revision)] == ["before", "after"]
            finally:
                first.signal(signal.SIGCONT)
            await followed.stop()

    async def member_id(etcd: Etcd) -> str:
        status = await asyncio.to_thread(etcd.ctl, "endpoint", "status", endpoint=etcd.servers[1].endpoint)
        return status.split(", ")[1]

    with Etcd(tmp_path, members=3) as etcd:
        run(scenario(etcd))


def test_a_restart_is_waited_for(tmp_path: Path) -> None:
    async def scenario(etcd: Etcd) -> None:
        (server,) = etcd.servers
        async with opened(etcd.endpoints, timeout_s=1.0) as store:
            before = await put(store, "before", "1")
            followed = Followed(store, before)
            server.signal(signal.SIGKILL)
            with pytest.raises(StoreUnavailable):
                await store.commit(Txn(puts={"lost": b""}))
            with pytest.raises(StoreUnavailable, match="did not answer within 1 s"):
                await store.snapshot("")
            etcd.start(server)
            after = await put(store, "after", "1")
            assert [change.key for change in await followed.until(after)] == ["after"]
            await followed.stop()

    with Etcd(tmp_path) as etcd:
        run(scenario(etcd))


def test_another_cluster_at_the_same_place_is_not_taken_for_it(tmp_path: Path) -> None:
    async def scenario(etcd: Etcd) -> None:
        (server,) = etcd.servers
        async with opened(etcd.endpoints) as store:
            followed = Followed(store, await put(store, "k", "1"))
            server.signal(signal.SIGKILL)
            server.forget()
            etcd.start(server)
            with pytest.raises(StoreUnavailable, match="another cluster than before"):
                while True:
                    try:
                        await store.snapshot("")
                    except StoreUnavailable as error:
                        if "does not answer" not in str(error) and "did not answer" not in str(error):
                            raise
            with pytest.raises(StoreUnavailable, match="another cluster than before"):
                await followed.until(10**9)

    with Etcd(tmp_path) as etcd:
        run(scenario(etcd))


def connection_file(folder: Path, **fields: object) -> str:
    path = folder / "connection.json"
    path.write_text(json.dumps(fields))
    return str(path)


def test_certificates_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    certificate, key = authority.issue("server")
    client_certificate, client_key = authority.issue("client")
    strange_certificate, strange_key = stranger.issue("stranger")
    good = {
        "certificate_file": "ours-ca.pem",
        "client_certificate_file": client_certificate.name,
        "client_key": client_key.read_text(),
    }

    async def scenario(etcd: Etcd) -> None:
        async def works(**fields: object) -> None:
            async with opened(connection_file(tmp_path, endpoints=etcd.endpoints, **fields)) as store:
                followed = Followed(store, await store.revision())
                revision = await put(store, "k", "1")
                assert len(await followed.until(revision)) == 1
                await followed.stop()

        async def fails(says: str, **fields: object) -> None:
            with pytest.raises(StoreUnavailable, match=says):
                await works(**fields)

        await works(**good)
        await works(**good, override_authority="localhost")
        strange = {"client_certificate_file": strange_certificate.name, "client_key": strange_key.read_text()}
        await fails("cannot be reached: .*(?i:certificate)", **{**good, "certificate_file": "other-ca.pem"})
        await fails("cannot be reached", **good, override_authority="elsewhere")
        await fails("cannot be reached", **{**good, **strange})
        await fails("cannot be reached", certificate_file="ours-ca.pem")

    monkeypatch.setattr("modelmesh.store.etcd.OPEN_S", 1.0)
    with Etcd(tmp_path, tls=ServerTls(authority.certificate, certificate, key)) as etcd:
        run(scenario(etcd))


def test_users_rights_and_tokens(tmp_path: Path) -> None:
    async def scenario(etcd: Etcd) -> None:
        for command in (
            "user add root:root",
            "user grant-role root root",
            "role add mesh",
            f"role grant-permission mesh --prefix=true readwrite {PREFIX}",
            "user add mesh:secret",
            "user grant-role mesh mesh",
            "auth enable",
        ):
            etcd.ctl(*command.split())
        where = connection_file(tmp_path, endpoints=etcd.endpoints, userid="mesh", password="secret")
        async with opened(where) as store:
            followed = Followed(store, await store.revision())
            await followed.until(await put(store, "k1", "1"))
            lease = await store.lease(5)
            await store.commit(Txn(puts={"leased": b""}, lease=lease))
            # Its tokens end with the process; ours has to be renewed for calls and watches.
            etcd.servers[0].signal(signal.SIGKILL)
            etcd.start(etcd.servers[0])
            revision = await put(store, "k2", "2")
            assert [change.key for change in await followed.until(revision)] == ["k1", "leased", "k2"]
            # A change of rights makes tokens old too.
            etcd.ctl(
                "--user", "root:root", "user", "passwd", "--interactive=false", "root:root"
            ) if False else None
            await followed.stop()
            await lease.close()
            assert [entry.key for entry in (await store.snapshot("")).entries] == ["k1", "k2"]
        async with opened(where, "/others/", timeout_s=2.0) as store:
            pytest.fail(f"{store} may read what it may not")

    with Etcd(tmp_path) as etcd:
        with pytest.raises(SettingsError, match="refuses us: etcdserver: permission denied"):
            run(scenario(etcd))
        wrong = connection_file(tmp_path, endpoints=etcd.endpoints, userid="mesh", password="guess")
        with pytest.raises(SettingsError, match=r"cannot be used: .*authentication failed"):
            run(open_and_close(wrong))
        with pytest.raises(SettingsError, match="user name is empty"):
            run(open_and_close(etcd.endpoints))


async def open_and_close(where: str) -> None:
    async with opened(where):
        pass


def test_a_password_nobody_asks_for_is_no_error(single: Etcd, tmp_path: Path) -> None:
    where = connection_file(tmp_path, endpoints=single.endpoints, userid="mesh", password="secret")
    run(open_and_close(where))


def test_a_wrong_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmesh.store.etcd.OPEN_S", 1.0)
    with pytest.raises(StoreUnavailable, match=r"cannot be reached: .*Check the endpoints"):
        run(open_and_close("127.0.0.1:1,127.0.0.1:2"))


def test_after_a_compaction_only_the_differences_are_told(single: Etcd) -> None:
    """What changed while we were cut off is no longer kept: consumers see each difference once all the same."""

    def ctl(*arguments: str) -> None:
        single.ctl(*arguments)

    def record(key: str) -> str:
        return f"/compacted/registry/{key}"

    async def scenario() -> None:
        async with (
            Between(f"127.0.0.1:{single.servers[0].port}") as between,
            opened(between.address, "/compacted/", timeout_s=2.0) as store,
        ):
            for model in ("kept", "changed", "deleted", "again"):
                await put(store, f"registry/{model}", '{"type":"onnx"}')
            clock = LoopClock()
            registrar = Registrar(store, Mirror(), clock, Journal(clock), read_only=True)
            await registrar.start()
            told: list[str] = []

            def listen(changed: ChangedIds) -> None:
                told.extend(sorted(changed.models))

            registrar.on_change(listen)
            between.cut()
            for command in (
                ("put", record("changed"), '{"type":"sklearn"}'),
                ("del", record("deleted")),
                ("put", record("new"), '{"type":"onnx"}'),
                ("del", record("again")),
                ("put", record("again"), '{"type":"xgboost"}'),
                ("put", record("brief"), '{"type":"onnx"}'),
                ("del", record("brief")),
            ):
                await asyncio.to_thread(ctl, *command)
            async with opened(single.endpoints, "/compacted/") as direct:
                revision = await direct.revision()
            await asyncio.to_thread(ctl, "compact", str(revision))
            between.mend()
            await insist(lambda: registrar.wait_current(5))
            await put(store, "registry/last", '{"type":"onnx"}')
            await insist(lambda: registrar.wait_current(5))
            assert sorted(told) == ["again", "changed", "deleted", "last", "new"]
            assert {id: record.type for id, record in registrar.mirror.page(limit=10)} == {
                    "kept": "onnx", "changed": "sklearn", "new": "onnx", "again": "xgboost", "last": "onnx",
                }  # fmt: skip
            await registrar.stop()

    run(scenario())


def test_a_lease_is_kept_and_its_loss_is_told(single: Etcd) -> None:
    async def scenario() -> None:
        async with opened(single.endpoints, "/leases/") as store:
            lease = await store.lease(1)
            await store.commit(Txn(puts={"member": b"1"}, lease=lease))
            await asyncio.sleep(2.5)
            assert not lease.lost
            assert len((await store.snapshot("")).entries) == 1, "it outlives its time while it is kept"
            followed = Followed(store, await store.revision())
            await asyncio.to_thread(single.ctl, "lease", "revoke", f"{lease.id:x}")
            await lease.wait_lost()
            assert lease.lost
            (gone,) = await followed.until(await store.revision())
            assert (gone.key, gone.value) == ("member", None)
            with pytest.raises(LeaseLost):
                await store.commit(Txn(puts={"member": b"1"}, lease=lease))
            again = await store.lease(1)
            await store.commit(Txn(puts={"member": b"2"}, lease=again))
            await lease.close()
            assert [entry.value for entry in (await store.snapshot("")).entries] == [b"2"]
            await again.close()
            await followed.stop()
            presence = Presence(store, 1)
            await presence.start({"member": b"3"})
            (own,) = json.loads(await asyncio.to_thread(single.ctl, "lease", "list", "-w", "json"))["leases"]
            before = await store.revision()
            followed = Followed(store, before)
            await asyncio.to_thread(single.ctl, "lease", "revoke", f"{own['id']:x}")
            gone, back = await followed.until(before + 2)
            assert (gone.value, back.value) == (None, b"3"), "a presence takes a new lease by itself"
            await followed.stop()
            await presence.stop()
            assert list((await store.snapshot("")).entries) == []
            await store.commit(Txn(puts={"member": b"4"}, lease=await store.lease(60)))
        async with opened(single.endpoints, "/leases/") as store:
            assert list((await store.snapshot("")).entries) == [], "closing the store ends its leases"

    run(scenario())


def test_a_snapshot_of_many_pages_is_of_one_revision(single: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmesh.store.etcd.PAGE_ENTRIES", 50)

    async def scenario() -> None:
        async with opened(single.endpoints, "/pages/") as store:
            for start in range(0, 1_000, 100):
                await store.commit(Txn(puts={f"k{n:04}": b"0" for n in range(start, start + 100)}))
            done = asyncio.Event()

            async def turn() -> None:
                """First the last key, then the first: who sees the first turned must see the last turned."""
                for n in range(10_000):
                    if done.is_set():
                        return
                    await put(store, "k0999", str(n))
                    await put(store, "k0000", str(n))

            turning = asyncio.create_task(turn())
            for _ in range(10):
                snapshot = await store.snapshot("")
                assert len(snapshot.entries) == 1_000
                first, last = int(snapshot.entries[0].value), int(snapshot.entries[-1].value)
                assert last in (first, first + 1)
                assert max(entry.revision for entry in snapshot.entries) <= snapshot.revision
            done.set()
            await turning
            assert len((await store.snapshot("", after="k0100", limit=120)).entries) == 120

    run(scenario())


def test_large_records_are_read_in_smaller_pages(single: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (("grpc.max_receive_message_length", 1 << 20), ("grpc.use_local_subchannel_pool", 1))
    monkeypatch.setattr("modelmesh.store.etcd_client.OPTIONS", options)

    async def scenario() -> None:
        async with opened(single.endpoints, "/large/") as store:
            for n in range(40):
                await put(store, f"k{n:02}", "x" * 100_000)
            assert [len(entry.value) for entry in (await store.snapshot("")).entries] == [100_000] * 40

    run(scenario())


@pytest.mark.parametrize("ordered", [False, True])
def test_a_watch_learns_that_nothing_of_its_own_changed(
    single: Etcd, monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    """In both ways; the installed etcd counts as one that tells its progress in order where it has nothing else to tell."""
    monkeypatch.setattr("modelmesh.store.etcd_watch.is_ordered", lambda version: ordered)

    async def scenario() -> None:
        async with opened(single.endpoints, f"/progress-{ordered}/") as store:
            followed = Followed(store, await store.revision(), "mine/")
            await followed.until(await put(store, "mine/a", "1"))
            for n in range(20):
                await put(store, "other", str(n))
                assert len(await followed.until(await store.revision())) == 1
            await followed.stop()

    run(scenario())


def test_a_backlog_too_large_for_one_message_comes_whole(single: Etcd) -> None:
    """etcd then cuts what it sends, also within a revision; batches never do."""

    async def scenario() -> None:
        async with opened(single.endpoints, "/backlog/") as store:
            start = await store.revision()
            for n in range(10):
                commit = await store.commit(Txn(puts={f"k{n}-{part}": b"x" * 100_000 for part in range(5)}))
            sizes: dict[int, int] = {}
            async for batch in store.watch("", start):
                for change in batch.changes:
                    assert sizes.setdefault(change.revision, 0) < 5
                    sizes[change.revision] += 1
                assert all(parts == 5 for parts in sizes.values()), "no commit is split"
                if batch.revision == commit.revision:
                    break
            assert len(sizes) == 10

    run(scenario())


def test_a_full_and_a_hung_etcd_are_told_apart(tmp_path: Path) -> None:
    async def scenario(etcd: Etcd) -> None:
        (server,) = etcd.servers
        async with opened(etcd.endpoints, timeout_s=1.0) as store:
            with pytest.raises(StoreUnavailable, match="is full and takes no writes"):
                for n in range(200):
                    await store.commit(Txn(puts={f"k{n}": b"x" * 1_000_000}))
            assert (await store.snapshot("", limit=1)).entries, "it can still be read"
            with pytest.raises(PayloadTooLarge, match="no transaction as large as this"):
                await store.commit(Txn(puts={f"l{n}": b"x" * 1_000_000 for n in range(3)}))
            server.signal(signal.SIGSTOP)
            try:
                for call in (store.revision(), store.commit(Txn(puts={"k": b""})), store.lease(1)):
                    with pytest.raises(StoreUnavailable):
                        await call
            finally:
                server.signal(signal.SIGCONT)
            await insist(store.revision)

    with Etcd(tmp_path, arguments=("--quota-backend-bytes", str(4 << 20))) as etcd:
        run(scenario(etcd))
