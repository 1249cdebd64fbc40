"""The registrar: the only writer of the registry, and by its other half (`follower`) the feeder of the mirror.

Writes are compare-and-put transactions, recomputed when something changed meanwhile, and visible in the mirror before they
return. What is learned while serving is written back lazily.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from modelmesh.clock import Clock
from modelmesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidInput,
    ModelMeshError,
    ModelNotFound,
    PayloadTooLarge,
    StaleRevision,
    StoreUnavailable,
)
from modelmesh.journal import Did, Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.gathering import Gathering
from modelmesh.mesh.naming.draft import Draft
from modelmesh.mesh.naming.follower import WAIT_CURRENT_S, Follower
from modelmesh.registry.ids import check_id
from modelmesh.registry.keep import NO_KEEP, Keep, KeepChange
from modelmesh.registry.mirror import ChangedIds, Mirror
from modelmesh.registry.records import ModelRecord
from modelmesh.store.protocol import Change, Entry, Store, Txn

BATCH_RECORDS: Final = 500
"""Records written in one transaction, if the store takes as many."""
ATTEMPTS: Final = 16
"""How often a transaction is recomputed before giving up."""
FLUSH_S: Final = 2.0
"""How long learned facts may wait before they are written."""
USED_STALE_MS: Final = 3_600_000
"""A last use is written when the stored one is this much older, or when the record is written anyway."""
USED_EVERY: Final = 30
"""Last uses are looked through at every so many flushes."""
READ_ONLY: Final = (
    "The registry is read-only here, so models and vmodels can be neither registered, changed nor deleted: ask an instance that "
    "may write to it, or start this one without read-only mode."
)

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Learned:
    """`of` is the record it was learned of: another artefact may be registered under the id before it is written."""

    of: ModelRecord
    size_bytes: int
    load_ms: int
    content: str


class Registrar(Follower):
    """`start` first; `stop` last. One owner, the event loop."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        clock: Clock,
        journal: Journal,
        root: str = "",
        *,
        read_only: bool = False,
    ) -> None:
        """`root` is what all keys begin with, as given to the mirror. With `read_only` whatever would write is refused."""
        super().__init__(store, mirror, root)
        self.refuses = READ_ONLY if read_only else ""
        """Why nothing is written; empty when it is."""
        self._forever = read_only
        self.txn_keys_max = store.txn_keys_max
        """The most records that one transaction may read and write."""
        self._batch_records = self._batch_records_max = min(BATCH_RECORDS, store.txn_keys_max)
        self._registering = Gathering(self._register_each, self._batch_records_max)
        self._clock = clock
        self._journal = journal
        self._learned: dict[str, _Learned] = {}
        self._used: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def read_only(self) -> bool:
        return bool(self.refuses)

    def keep_off(self, why: str) -> None:
        """Refuse whatever would write with this sentence from now on; empty: write again, and tell listeners of the vmodels that
        are under way. Without effect on a registrar that was made read-only."""
        if not self._forever and why != self.refuses:
            self.refuses = why
            if not why:
                self._tell(ChangedIds(vmodels=set(self._mirror.unsettled)))

    async def start(self) -> None:
        """Fill the mirror and keep it current from now on. Raises StoreUnavailable."""
        after = await self._resync()
        self._tasks = [asyncio.create_task(self._follow(after), name="registry-watch")]
        if not self._forever:
            self._tasks.append(asyncio.create_task(self._write_back(), name="registry-write-back"))
        for task in self._tasks:
            task.add_done_callback(_tell_bug)

    async def stop(self) -> None:
        """Write what was learned, then stop. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in (*tasks, *filter(None, [self._reading])):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks and not self.read_only:
            try:
                async with asyncio.timeout(WAIT_CURRENT_S):
                    await self._flush(used_stale_ms=1)
            except (StoreUnavailable, FailedPrecondition, TimeoutError) as error:
                log.warning("What was learned since the last write is lost: %s", error)

    async def kill(self) -> None:
        """Stop at once, writing nothing: for tests of crashes."""
        tasks, self._tasks = self._tasks, []
        for task in (*tasks, *filter(None, [self._reading])):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Registering

    async def register(self, registration: Registration) -> None:
        """Register a model; one with equal attributes is left as it is. Raises AlreadyExists, InvalidInput, StoreUnavailable."""
        await self._registering.one(registration)

    async def register_many(self, registrations: Sequence[Registration]) -> list[ModelMeshError | None]:
        """One answer per registration, in order: None when it is registered. A store that fails midway answers for the rest."""
        return await self._register_all(registrations, self._note_together)

    async def _register_each(self, registrations: Sequence[Registration]) -> list[ModelMeshError | None]:
        """As `register_many`, of models that were not registered together."""
        return await self._register_all(registrations, self._note_each)

    async def _register_all(
        self, registrations: Sequence[Registration], note: Callable[[Sequence[str]], None]
    ) -> list[ModelMeshError | None]:
        answers: list[ModelMeshError | None] = []
        while len(answers) < len(registrations):
            chunk = registrations[len(answers) : len(answers) + self._batch_records]
            try:
                some, added = await self._register(chunk)
                note(added)
                answers.extend(some)
                self._more()
            except PayloadTooLarge as error:
                if not self._fewer_than(len(chunk)):
                    answers.append(error)
            except StoreUnavailable as error:
                answers.extend([error] * (len(registrations) - len(answers)))
        return answers

    def _note_each(self, added: Sequence[str]) -> None:
        for model in added:
            self._journal.record(Did.REGISTERED, model, "It was registered.")

    def _note_together(self, added: Sequence[str]) -> None:
        if len(added) > 1:
            reason = f"{len(added)} models were registered."
            self._journal.record(Did.REGISTERED, "", reason, models=len(added))
        else:
            self._note_each(added)

    def _fewer_than(self, count: int) -> bool:
        """These many records are too large together: write half as many at once. False when that is none."""
        self._batch_records = max(1, min(self._batch_records, count // 2))
        return count > 1

    def _more(self) -> None:
        self._batch_records = min(2 * self._batch_records, self._batch_records_max)

    async def _register(
        self, registrations: Sequence[Registration]
    ) -> tuple[list[ModelMeshError | None], list[str]]:
        """In one transaction. The answers, and the models that were not there before."""
        added: dict[str, None] = {}

        def decide(draft: Draft) -> list[ModelMeshError | None]:
            added.clear()
            answers: list[ModelMeshError | None] = []
            for registration in registrations:
                if self.read_only:  # a newer last use is no reason to refuse what is registered
                    registration = replace(registration, last_used_ms=0)
                try:
                    if register_in(draft, registration):
                        added[registration.id] = None
                    answers.append(None)
                except ModelMeshError as error:
                    answers.append(error)
            return answers

        return await self.transact(decide), list(added)

    async def unregister(self, model: str) -> bool:
        """Forget a model. False when it was not registered. Raises FailedPrecondition while vmodels refer to it."""

        def decide(draft: Draft) -> bool:
            record = draft.model(model)
            if record is None:
                return False
            if record.references:
                names = ", ".join(self._mirror.names_of(model)) or "a transition to it"
                raise FailedPrecondition(
                    f"Model {model} cannot be unregistered while vmodels refer to it ({names}): "
                    "delete them or point them elsewhere first.",
                    model=model,
                )
            draft.put_model(model, None)
            return True

        removed = await self.transact(decide)
        if removed:
            self._journal.record(Did.UNREGISTERED, model, "It was unregistered.")
        return removed

    async def keep(self, model: str, change: KeepChange) -> None:
        """Change how a model is kept. Raises ModelNotFound, InvalidInput, StoreUnavailable."""

        def decide(draft: Draft) -> Keep | None:
            record = draft.model(model)
            if record is None:
                raise ModelNotFound.named(model)
            keep = change.applied(record.keep, model)
            draft.put_model(model, replace(record, keep=keep))
            return keep if keep != record.keep else None

        keep = await self.transact(decide)
        if keep is not None:
            self._journal.record(
                Did.REGISTERED,
                model,
                "How it is kept was changed.",
                min_copies=keep.min_copies,
                max_copies=keep.max_copies,
                pin=int(keep.pin),
                priority=keep.priority,
            )

    async def transact(self, decide: Callable[[Draft], T]) -> T:
        """Run `decide` on a draft and commit what it wrote. It is run again with the present values when anything it read has
        changed, also when it raised or wrote nothing: so its answer is true of the store, not just of the mirror. It must be
        free of side effects. Raises what `decide` raises, StaleRevision after many attempts, StoreUnavailable."""
        known: dict[str, Entry | None] = {}
        for _ in range(ATTEMPTS):
            draft = Draft(self._mirror, self._root, known, self.refuses)
            raised: ModelMeshError | None = None
            try:
                result = decide(draft)
                txn = draft.txn()
                if not txn.compares:
                    return result
            except ModelMeshError as error:
                raised = error
                txn = Txn(compares=draft.txn().compares)
                if not txn.compares:
                    raise
            commit = await self._store.commit(txn)
            if commit.succeeded:
                if raised is not None:
                    raise raised
                changes = [Change(key, value, commit.revision) for key, value in txn.puts.items()]
                changes += [Change(key, None, commit.revision) for key in txn.deletes]
                # The revision of a transaction that only read is that of somebody else's change, which is still to come.
                next_one = bool(changes) and commit.revision == self._mirror.revision + 1
                self._apply(changes, commit.revision if next_one else 0)
                return result
            known.update(dict.fromkeys(txn.compares, None))
            known.update(commit.current)
        raise StaleRevision(f"The registry changed under {ATTEMPTS} attempts to write to it: try again.")

    # Writing back what was learned

    def learned(self, model: str, size_bytes: int, load_ms: int, content: str) -> None:
        """Remember what a load taught; written within seconds, in a batch with others."""
        record = self._mirror.model(model)
        if record is not None and not self.read_only:
            self._learned[model] = _Learned(record, size_bytes, load_ms, content)

    def used(self, model: str, last_used_ms: int) -> None:
        """Remember a use (Unix epoch); written when the stored time has become stale, so restarts know what was in use."""
        if last_used_ms > self._used.get(model, 0) and not self.read_only:
            self._used[model] = last_used_ms

    async def _write_back(self) -> None:
        failing = False
        flushes = 0
        while True:
            await asyncio.sleep(FLUSH_S)
            flushes += 1
            if self.read_only:
                continue
            try:
                # Uses are many and change little: they are looked through less often.
                await self._flush(USED_STALE_MS if flushes % USED_EVERY == 0 else 0)
                failing = False
            except (StoreUnavailable, FailedPrecondition) as error:
                if not failing:
                    log.warning("What was learned is kept until the store takes it: %s", error)
                failing = True

    async def _flush(self, used_stale_ms: int) -> None:
        """Write what was learned, and with `used_stale_ms` the uses that are newer by that much than the stored ones."""
        learned, self._learned = self._learned, {}
        used: dict[str, int] = {}
        if used_stale_ms:
            used, self._used = self._used, {}
        ids = sorted(learned.keys() | used.keys())
        start = 0
        while start < len(ids):
            wanted = ids[start : start + self._batch_records]
            chunk = [id for id in wanted if self._worth_writing(id, learned, used, used_stale_ms)]
            try:
                await self.transact(partial(_learn, chunk, learned, used | self._used))
                self._more()
            except PayloadTooLarge as error:
                if self._fewer_than(len(wanted)):
                    continue
                log.warning("What was learned of %s cannot be stored: %s", ids[start], error)
            except (StoreUnavailable, FailedPrecondition):
                rest = ids[start:]
                self._learned = {id: learned[id] for id in rest if id in learned} | self._learned
                self._used = {id: used[id] for id in rest if id in used} | self._used
                raise
            start += len(wanted)
            await asyncio.sleep(0)

    def _worth_writing(
        self, id: str, learned: Mapping[str, _Learned], used: Mapping[str, int], used_stale_ms: int
    ) -> bool:
        record = self._mirror.model(id)
        if record is None:
            return False
        if used_stale_ms and used.get(id, 0) - record.last_used_ms >= used_stale_ms:
            return True
        facts = learned.get(id)
        return facts is not None and facts.of.same_model(record) and not _about_equal(facts, record)


def register_in(draft: Draft, registration: Registration, *, auto_delete: bool = False) -> bool:
    """Register a model within a transaction; with `auto_delete` it goes with its last reference. False when it is registered
    already with equal attributes; then what is said of how it is kept is changed. Raises InvalidInput, AlreadyExists."""
    id = check_id(registration.id)
    if not registration.type.strip():
        raise InvalidInput(f"Model {id} needs a type, for example sklearn.", model=id)
    used_ms = registration.last_used_ms
    record = draft.model(id)
    new = ModelRecord(
        registration.type,
        registration.path,
        registration.key,
        auto_delete=auto_delete,
        last_used_ms=used_ms,
        keep=registration.keep.applied(NO_KEEP if record is None else record.keep, id),
    )
    if record is None:
        draft.put_model(id, new)
        return True
    if not record.same_model(new):
        raise AlreadyExists(
            f"Model {id} is registered already with other attributes (type {record.type}, path {record.path or 'none'}): "
            "unregister it first, or choose another id.",
            model=id,
        )
    if used_ms - record.last_used_ms > USED_STALE_MS or new.keep != record.keep:
        draft.put_model(id, replace(record.used(used_ms), keep=new.keep))
    return False


def _learn(
    ids: Sequence[str], learned: Mapping[str, _Learned], used: Mapping[str, int], draft: Draft
) -> None:
    for id in ids:
        record = draft.model(id)
        if record is None:
            continue
        record = record.used(used.get(id, 0))
        facts = learned.get(id)
        if facts is not None and facts.of.same_model(record) and not _about_equal(facts, record):
            record = replace(
                record,
                size_bytes=facts.size_bytes,
                load_ms=facts.load_ms,
                content=facts.content or record.content,
            )
        draft.put_model(id, record)


def _about_equal(facts: _Learned, record: ModelRecord) -> bool:
    """Whether writing would teach a reader nothing: every load takes another time, and a write per load is too much."""
    return (
        (facts.content or record.content) == record.content
        and abs(facts.size_bytes - record.size_bytes) <= record.size_bytes / 100
        and abs(facts.load_ms - record.load_ms) <= max(record.load_ms / 4, 5)
        and (record.load_ms > 0 or facts.load_ms == 0)
    )


def _tell_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("The task %s ended by a bug: please report it.", task.get_name(), exc_info=error)
