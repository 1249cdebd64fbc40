"""The registrar on a memory store, under virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from modelmesh.clock import LoopClock
from modelmesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidInput,
    ModelNotFound,
    PayloadTooLarge,
    StaleRevision,
    StoreUnavailable,
)
from modelmesh.journal import Did, Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming import follower
from modelmesh.mesh.naming.draft import Draft
from modelmesh.mesh.naming.follower import READ_ENTRIES
from modelmesh.mesh.naming.registrar import BATCH_RECORDS, Registrar
from modelmesh.registry.keep import Keep, KeepChange
from modelmesh.registry.mirror import ChangedIds, Mirror
from modelmesh.registry.records import ModelRecord, VModelRecord
from modelmesh.store.memory import MemoryStore
from modelmesh.store.protocol import Batch, Commit, Revision, Txn
from modelmesh.testing.loop import run

ROOT = "r/"
IRIS = Registration("iris", "sklearn", "/models/iris")


class Counting(MemoryStore):
    """Counts commits and revision reads; can hold back what a watch yields, and let others write first."""

    def __init__(self, kept_changes: int = 4096) -> None:
        super().__init__(kept_changes)
        self.commits: list[Txn] = []
        self.reads = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.before_commit: Callable[[], Awaitable[object]] | None = None

    async def commit(self, txn: Txn) -> Commit:
        self.commits.append(txn)
        if self.before_commit is not None:
            await self.before_commit()
        return await super().commit(txn)

    async def revision(self) -> Revision:
        self.reads += 1
        await asyncio.sleep(0.01)
        return await super().revision()

    async def watch(self, prefix: str, after: Revision) -> AsyncIterator[Batch]:
        async for batch in super().watch(prefix, after):
            await self.flowing.wait()
            yield batch


@dataclasses.dataclass
class House:
    store: Counting
    mirror: Mirror
    journal: Journal
    registrar: Registrar
    changes: list[ChangedIds]


def with_registrar(scenario: Callable[[House], Awaitable[None]], store: Counting | None = None) -> None:
    async def main() -> None:
        used = store or Counting()
        house = await furnish(used)
        await scenario(house)
        await house.registrar.stop()
        await used.close()

    run(main())


async def furnish(store: Counting) -> House:
    clock = LoopClock(1e9)
    journal = Journal(clock)
    mirror = Mirror(ROOT)
    registrar = Registrar(store, mirror, clock, journal, ROOT)
    changes: list[ChangedIds] = []
    registrar.on_change(changes.append)
    await registrar.start()
    return House(store, mirror, journal, registrar, changes)


async def put(store: MemoryStore, id: str, record: ModelRecord | None) -> None:
    """Write as another instance would."""
    key = f"{ROOT}registry/{id}"
    txn = Txn(deletes=[key]) if record is None else Txn(puts={key: record.encode()})
    await MemoryStore.commit(store, txn)


async def stored(store: MemoryStore, id: str) -> ModelRecord | None:
    (*entries,) = (await store.snapshot(f"{ROOT}registry/{id}")).entries
    return ModelRecord.decode(entries[0].value) if entries else None


def test_register_reads_its_own_write() -> None:
    async def scenario(house: House) -> None:
        house.store.flowing.clear()
        await house.registrar.register(IRIS)
        assert house.mirror.model("iris") == ModelRecord("sklearn", "/models/iris")
        assert await stored(house.store, "iris") == house.mirror.model("iris")
        assert [changed.models for changed in house.changes] == [{"iris"}]
        assert [entry.did for entry in house.journal.about("iris")] == [Did.REGISTERED]
        house.store.flowing.set()
        await asyncio.sleep(0.1)
        assert len(house.changes) == 1, "the watch brought nothing new"

    with_registrar(scenario)


def test_register_is_idempotent_for_equal_attributes() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register(IRIS)
        house.registrar.learned("iris", 5, 6, "c")
        await asyncio.sleep(5)
        await house.registrar.register(IRIS)
        assert house.mirror.model("iris") == ModelRecord(
            "sklearn", "/models/iris", size_bytes=5, load_ms=6, content="c"
        )
        with pytest.raises(AlreadyExists, match="iris"):
            await house.registrar.register(dataclasses.replace(IRIS, path="/other"))

    with_registrar(scenario)


@pytest.mark.parametrize(
    "registration",
    [Registration("", "x"), Registration(" ", "x"), Registration("a", " "), Registration("a\n", "x")],
)
def test_register_refuses_nonsense(registration: Registration) -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(InvalidInput):
            await house.registrar.register(registration)
        assert house.store.commits == []

    with_registrar(scenario)


def test_how_a_model_is_kept_changes_without_the_rest() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register(replace(IRIS, keep=KeepChange(min_copies=1)))
        await house.registrar.register(IRIS)
        assert house.mirror.model("iris") == ModelRecord("sklearn", "/models/iris", keep=Keep(min_copies=1))
        await house.registrar.register(replace(IRIS, keep=KeepChange(pin=True)))
        await house.registrar.keep("iris", KeepChange(max_copies=4, priority=2.0))
        assert (await stored(house.store, "iris")) == house.mirror.model("iris")
        assert house.mirror.model("iris") == ModelRecord(
            "sklearn", "/models/iris", keep=Keep(1, 4, True, 2.0)
        )
        commits = len(house.store.commits)
        await house.registrar.keep("iris", KeepChange(max_copies=4))
        assert not house.store.commits[commits].puts, "nothing is written that is so already"
        assert len([entry for entry in house.journal.about("iris") if "kept" in entry.reason]) == 1

    with_registrar(scenario)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (KeepChange(min_copies=-1), "min_copies: -1 is not a number from 0 to 1000."),
        (KeepChange(max_copies=1001), "max_copies: 1001 is not a number from 0 to 1000."),
        (KeepChange(priority=float("nan")), "priority: nan is not a number from 0.01 to 100"),
        (KeepChange(priority=0.0), "priority: 0 is not a number from 0.01 to 100"),
        (KeepChange(max_copies=1), "At least 2 copies are more than at most 1: lower min_copies"),
    ],
)
def test_nonsense_about_how_a_model_is_kept_is_refused(change: KeepChange, sentence: str) -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register(replace(IRIS, keep=KeepChange(min_copies=2)))
        with pytest.raises(InvalidInput, match=re.escape(sentence)):
            await house.registrar.keep("iris", change)
        with pytest.raises(InvalidInput, match=re.escape(sentence)):
            await house.registrar.register(replace(IRIS, keep=change))
        with pytest.raises(ModelNotFound):
            await house.registrar.keep("rose", KeepChange(pin=True))

    with_registrar(scenario)


def test_an_answer_from_a_stale_mirror_is_checked_with_the_store() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register(IRIS)
        house.store.flowing.clear()
        await put(house.store, "iris", None)
        await house.registrar.register(dataclasses.replace(IRIS, path="/other"))
        assert (await stored(house.store, "iris")) == ModelRecord("sklearn", "/other")
        await put(house.store, "wine", ModelRecord("onnx"))
        with pytest.raises(AlreadyExists):
            await house.registrar.register(Registration("wine", "sklearn"))

    with_registrar(scenario)


def test_register_many_answers_each_in_few_commits() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register(Registration("m7", "other"))
        house.store.commits.clear()
        registrations = [Registration(f"m{n}", "onnx", f"/{n}") for n in range(2 * BATCH_RECORDS + 1)]
        registrations[9] = Registration("", "onnx")
        registrations[8] = registrations[5]
        answers = await house.registrar.register_many(registrations)
        assert [position for position, answer in enumerate(answers) if answer is not None] == [7, 9]
        assert isinstance(answers[7], AlreadyExists)
        assert isinstance(answers[9], InvalidInput)
        assert len(house.store.commits) == 3
        assert house.mirror.n_models == len(registrations) - 2
        assert await house.registrar.register_many([]) == []

    with_registrar(scenario)


def test_those_who_register_at_the_same_time_share_commits_and_each_gets_its_own_answer() -> None:
    async def scenario(house: House) -> None:
        store = house.store
        store.before_commit = lambda: asyncio.sleep(0.1)

        async def register(*registrations: Registration) -> list[BaseException | None]:
            calls = (house.registrar.register(each) for each in registrations)
            return await asyncio.gather(*calls, return_exceptions=True)

        models = [Registration(f"m{n}", "onnx", f"/{n}") for n in range(20)]
        answers = await register(*models, Registration("m7", "other"), Registration("", "onnx"), models[3])
        assert [type(answer) for answer in answers] == [type(None)] * 20 + [
            AlreadyExists, InvalidInput, type(None),
        ]  # fmt: skip
        assert len(store.commits) == 1
        assert [await stored(store, f"m{n}") for n in range(20)] == [
            ModelRecord("onnx", f"/{n}") for n in range(20)
        ]
        assert all(len(house.journal.about(f"m{n}")) == 1 for n in range(20)), "each has its own story"
        store.outage = "The store is away."
        lost = await register(Registration("x", "onnx"), Registration("y", "onnx"))
        assert [type(answer) for answer in lost] == [StoreUnavailable] * 2
        store.outage = ""
        house.registrar.keep_off("It is read-only.")
        refused = await register(models[0], Registration("z", "onnx"))
        assert refused[0] is None and isinstance(refused[1], FailedPrecondition)

    with_registrar(scenario)


def test_register_many_survives_a_conflict() -> None:
    async def scenario(house: House) -> None:
        house.store.flowing.clear()
        await put(house.store, "m3", ModelRecord("onnx", "/3", references=2))
        await put(house.store, "m4", ModelRecord("else"))
        answers = await house.registrar.register_many(
            [Registration(f"m{n}", "onnx", f"/{n}") for n in range(6)]
        )
        assert [type(answer) for answer in answers] == [type(None)] * 4 + [AlreadyExists, type(None)]
        assert (await stored(house.store, "m3")) == ModelRecord("onnx", "/3", references=2)

    with_registrar(scenario)


def test_register_many_tells_what_the_store_refused() -> None:
    async def scenario(house: House) -> None:
        async def fail_second() -> None:
            if len(house.store.commits) == 2:
                house.store.outage = "The store is away."

        house.store.before_commit = fail_second
        answers = await house.registrar.register_many(
            [Registration(f"m{n}", "onnx") for n in range(BATCH_RECORDS + 5)]
        )
        assert answers[:BATCH_RECORDS] == [None] * BATCH_RECORDS
        assert all(isinstance(answer, StoreUnavailable) for answer in answers[BATCH_RECORDS:])
        assert house.mirror.n_models == BATCH_RECORDS
        house.store.outage = ""

    with_registrar(scenario)


def limit_bytes(store: Counting, limit: int) -> None:
    """Refuse transactions that write more, as etcd does."""

    async def check() -> None:
        written = sum(len(value) for value in store.commits[-1].puts.values())
        if written > limit:
            raise PayloadTooLarge(f"{written} bytes are too many.")

    store.before_commit = check


def test_what_is_too_large_together_is_written_in_parts() -> None:
    async def scenario(house: House) -> None:
        limit_bytes(house.store, 1_000)
        registrations = [Registration(f"m{n}", "onnx", "/" + "x" * 100) for n in range(40)]
        registrations[20] = Registration("large", "onnx", "/" + "x" * 2_000)
        answers = await house.registrar.register_many(registrations)
        assert [position for position, answer in enumerate(answers) if answer is not None] == [20]
        assert isinstance(answers[20], PayloadTooLarge)
        assert house.mirror.n_models == 39
        house.store.commits.clear()
        await house.registrar.register_many([Registration(f"small-{n}", "onnx") for n in range(39)])
        assert len(house.store.commits) < 12, "it does not stay with small parts"
        for n in range(20):
            house.registrar.learned(f"m{n}", 1_000 + n, 5, "content")
        await asyncio.sleep(5)
        records = [await stored(house.store, f"m{n}") for n in range(20)]
        assert [record.size_bytes for record in records] == [1_000 + n for n in range(20)]

    with_registrar(scenario)


def test_unregister() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register(IRIS)
        assert await house.registrar.unregister("iris")
        assert not await house.registrar.unregister("iris")
        assert not await house.registrar.unregister("never")
        assert house.mirror.model("iris") is None
        assert await stored(house.store, "iris") is None
        await put(house.store, "used", ModelRecord("x", references=1))
        await house.store.commit(Txn(puts={f"{ROOT}vmodels/name": VModelRecord("used", "used").encode()}))
        await asyncio.sleep(0.1)
        with pytest.raises(FailedPrecondition, match="name"):
            await house.registrar.unregister("used")

    with_registrar(scenario)


def test_reads_go_on_while_the_store_is_away() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register(IRIS)
        house.store.outage = "The store is away."
        with pytest.raises(StoreUnavailable):
            await house.registrar.register(Registration("wine", "onnx"))
        assert house.mirror.model("iris") is not None
        with pytest.raises(StoreUnavailable):
            await house.registrar.wait_current()
        house.store.outage = ""
        await house.registrar.register(Registration("wine", "onnx"))

    with_registrar(scenario)


def test_a_transaction_that_never_wins_gives_up() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register(IRIS)
        turn = 0

        async def outrun() -> None:
            nonlocal turn
            turn += 1
            await put(house.store, "iris", ModelRecord("sklearn", "/models/iris", last_used_ms=turn))

        house.store.before_commit = outrun
        with pytest.raises(StaleRevision):
            await house.registrar.transact(lambda draft: draft.put_model("iris", None))

    with_registrar(scenario)


def test_a_draft_that_reads_what_it_wrote_commits_once() -> None:
    async def scenario(house: House) -> None:
        def decide(draft: Draft) -> None:
            draft.put_model("a", ModelRecord("x"))
            assert draft.model("a") == ModelRecord("x")
            draft.put_model("a", None)
            draft.put_model("b", ModelRecord("y"))

        await house.registrar.transact(decide)
        assert house.mirror.model("a") is None
        assert house.mirror.model("b") == ModelRecord("y")
        (txn,) = house.store.commits
        assert set(txn.compares) == {f"{ROOT}registry/a", f"{ROOT}registry/b"}
        assert txn.deletes == []

    with_registrar(scenario)


def test_the_start_reads_every_page() -> None:
    async def main() -> None:
        store = Counting()
        for number in range(2 * READ_ENTRIES + 10):
            await put(store, f"m{number:05}", ModelRecord("x"))
        await MemoryStore.commit(store, Txn(puts={"elsewhere": b"?"}))
        house = await furnish(store)
        assert house.mirror.n_models == 2 * READ_ENTRIES + 10
        await put(store, "m00001", None)
        await house.registrar.wait_current()
        assert house.mirror.model("m00001") is None
        await house.registrar.stop()

    run(main())


@pytest.mark.parametrize(("read", "apply"), [(2000, 500), (40, 7)])
def test_a_watch_that_lost_track_begins_again(read: int, apply: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "READ_ENTRIES", read)
    monkeypatch.setattr(follower, "APPLY_ENTRIES", apply)

    async def scenario(house: House) -> None:
        await house.registrar.register_many([Registration(f"m{n:03}", "x") for n in range(30)])
        house.store.flowing.clear()
        for n in range(0, 30, 2):
            await put(house.store, f"m{n:03}", None)
        for n in range(100):
            await put(house.store, f"new{n}", ModelRecord("y"))
        house.changes.clear()
        house.store.flowing.set()
        await house.registrar.wait_current()
        assert [id for id, _ in house.mirror.page("m")] == [f"m{n:03}" for n in range(1, 30, 2)]
        assert house.mirror.count("new") == 100
        assert {id for changed in house.changes for id in changed.models} >= {"m000", "new99"}

    with_registrar(scenario, Counting(kept_changes=20))


def test_wait_current_shares_one_read_and_covers_what_was_there() -> None:
    async def scenario(house: House) -> None:
        house.store.flowing.clear()
        await put(house.store, "late", ModelRecord("x"))
        waiting = [asyncio.create_task(house.registrar.wait_current()) for _ in range(50)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in waiting)
        house.store.flowing.set()
        await asyncio.gather(*waiting)
        assert house.mirror.model("late") is not None
        assert house.store.reads <= 2

    with_registrar(scenario)


def test_wait_current_has_a_deadline() -> None:
    async def scenario(house: House) -> None:
        house.store.flowing.clear()
        await put(house.store, "late", ModelRecord("x"))
        with pytest.raises(StoreUnavailable):
            await house.registrar.wait_current(0.5)
        house.store.flowing.set()
        await house.registrar.wait_current(0.5)

    with_registrar(scenario)


def test_what_is_learned_is_written_in_a_batch_and_only_when_it_is_news() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register_many([Registration(f"m{n}", "x") for n in range(20)])
        house.store.commits.clear()
        for n in range(20):
            house.registrar.learned(f"m{n}", 1000, 100, "abc")
        house.registrar.learned("gone", 1, 1, "")
        await asyncio.sleep(3)
        assert [len(txn.puts) for txn in house.store.commits] == [20]
        record = house.mirror.model("m3")
        assert record is not None
        assert (record.size_bytes, record.load_ms, record.content) == (1000, 100, "abc")
        house.registrar.learned("m3", 1005, 110, "abc")
        await asyncio.sleep(3)
        assert len(house.store.commits) == 1, "about the same as before"
        house.registrar.learned("m3", 2000, 110, "")
        await asyncio.sleep(3)
        record = house.mirror.model("m3")
        assert record is not None
        assert (record.size_bytes, record.load_ms, record.content) == (2000, 110, "abc")

    with_registrar(scenario)


def test_uses_are_written_when_stale_and_at_the_end() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register_many([Registration("a", "x"), Registration("b", "x")])
        house.registrar.used("a", 1_700_000_000_000)
        house.registrar.used("a", 1_600_000_000_000)
        await asyncio.sleep(70)
        assert (await stored(house.store, "a")) == ModelRecord("x", last_used_ms=1_700_000_000_000)
        house.store.commits.clear()
        house.registrar.used("a", 1_700_000_000_500)
        house.registrar.used("b", 5)
        await asyncio.sleep(70)
        assert house.store.commits == []
        house.registrar.used("a", 1_700_000_000_900)
        await house.registrar.stop()
        assert (await stored(house.store, "a")) == ModelRecord("x", last_used_ms=1_700_000_000_900)

    with_registrar(scenario)


def test_what_is_learned_outlasts_an_outage() -> None:
    async def scenario(house: House) -> None:
        await house.registrar.register(IRIS)
        house.store.outage = "The store is away."
        house.registrar.learned("iris", 10, 20, "old")
        await asyncio.sleep(10)
        house.registrar.learned("iris", 11, 21, "new")
        await asyncio.sleep(10)
        house.store.outage = ""
        await asyncio.sleep(5)
        record = await stored(house.store, "iris")
        assert record is not None
        assert (record.size_bytes, record.content) == (11, "new")

    with_registrar(scenario)


def test_an_unreadable_record_can_be_registered_over() -> None:
    async def main() -> None:
        store = Counting()
        await MemoryStore.commit(store, Txn(puts={f"{ROOT}registry/iris": b"{nonsense"}))
        house = await furnish(store)
        assert house.mirror.model("iris") is None
        await house.registrar.register(IRIS)
        assert (await stored(store, "iris")) == ModelRecord("sklearn", "/models/iris")
        await house.registrar.stop()

    run(main())


def test_a_read_of_what_another_wrote_does_not_stand_for_having_it() -> None:
    async def scene() -> None:
        store, clock = MemoryStore(), LoopClock()
        journal = Journal(clock)
        one, other = (Registrar(store, Mirror(), clock, journal) for _ in range(2))
        await one.start()
        await other.start()
        await one.register(Registration("iris", "sklearn", "a"))
        await other.wait_current()
        await other.register(Registration("rose", "sklearn", "b"))
        assert one.mirror.model("rose") is None  # its watch has not come round yet
        await one.register(Registration("rose", "sklearn", "b"))
        await one.wait_current()
        assert one.mirror.model("rose") is not None
        await one.stop()
        await other.stop()

    run(scene())
