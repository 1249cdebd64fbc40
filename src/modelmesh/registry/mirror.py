"""What this instance knows of models and vmodels: a mirror of the store, kept as packed raw records.

Pure: it is fed with changes and asked. Changes come twice, from our own commits and from the watch, and may come late; the
revision kept with each record decides, so that applying is idempotent and never goes back in time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from modelmesh.errors import InvalidInput
from modelmesh.registry.ids import name_of
from modelmesh.registry.packed import PackedMap
from modelmesh.registry.records import REGISTRY, VMODELS, ModelRecord, VModelRecord

_PAIR = "\x02"
_MIN_COPIES = b'"minCopies":'
"""Only in the records of models that have some."""
_LAST_USED: Final = re.compile(rb'"lu": ?([0-9]+)')
_RECENT_MAX: Final = 512

Record = TypeVar("Record", ModelRecord, VModelRecord)


class Changed(Protocol):
    """A key was put, or deleted (`value` None), at `revision`; `modelmesh.store.protocol.Change` is one."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def revision(self) -> int: ...


@dataclass(slots=True)
class ChangedIds:
    """The ids whose records are different now."""

    models: set[str] = field(default_factory=set)
    vmodels: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.models or self.vmodels)


class Mirror:
    """`report` is told once, in a sentence, of each record that cannot be read; such a record counts as absent."""

    def __init__(
        self, root: str = "", report: Callable[[str, str], None] = lambda id, sentence: None
    ) -> None:
        """`root` is what all keys begin with. `report(id, sentence)` must not raise."""
        self._registry = root + REGISTRY
        self._vmodels_prefix = root + VMODELS
        self._report = report
        self._models = PackedMap()
        self._vmodels = PackedMap()
        self._names = PackedMap()
        """One key per (active model, vmodel), except where the model's id tells the vmodel: nearly all of a folder would."""
        self._broken: dict[str, int] = {}
        self._recent_models: dict[str, ModelRecord] = {}
        """Decoded lately, because a load asks for the same record several times; the same for vmodels."""
        self._recent_vmodels: dict[str, VModelRecord] = {}
        self._deleted: dict[str, int] = {}
        """Keys deleted ahead of the watch, with their revisions: older puts must not bring them back."""
        self._unsettled: set[str] = set()
        self._with_min_copies: set[str] = set()
        self.revision = 0
        """Everything up to this revision of the store is in here."""

    @property
    def n_models(self) -> int:
        return len(self._models)

    @property
    def n_vmodels(self) -> int:
        return len(self._vmodels)

    def model(self, id: str) -> ModelRecord | None:
        """The record of a registered model, or None."""
        return self._recent_models.get(id) or _look(self._models, id, ModelRecord.decode, self._recent_models)

    def has_model(self, id: str) -> bool:
        """Whether there is such a model, without decoding its record."""
        return self._models.get(id) is not None

    def vmodel(self, id: str) -> VModelRecord | None:
        """The record of a vmodel, or None."""
        recent = self._recent_vmodels
        return recent.get(id) or _look(self._vmodels, id, VModelRecord.decode, recent)

    def has_vmodel(self, id: str) -> bool:
        """Whether there is such a vmodel, without decoding its record."""
        return self._vmodels.get(id) is not None

    def model_at(self, id: str) -> tuple[int, ModelRecord | None]:
        """The record with the revision it was last changed at, for compare-and-put; (0, None) when absent."""
        raw = self._models.get(id)
        if raw is None:
            return self._broken.get(self._registry + id, 0), None
        revision, value = _split(raw)
        return revision, ModelRecord.decode(value)

    def vmodel_at(self, id: str) -> tuple[int, VModelRecord | None]:
        """As `model_at`, for a vmodel."""
        raw = self._vmodels.get(id)
        if raw is None:
            return self._broken.get(self._vmodels_prefix + id, 0), None
        revision, value = _split(raw)
        return revision, VModelRecord.decode(value)

    def names_of(self, model: str) -> list[str]:
        """The vmodels whose active model it is, ordered; empty when there are none."""
        prefix = model + _PAIR
        names = [pair[len(prefix) :] for pair, _ in self._names.scan(prefix)]
        own = self.vmodel(name_of(model))
        return sorted([*names, name_of(model)]) if own is not None and own.active == model else names

    @property
    def unsettled(self) -> Set[str]:
        """The vmodels whose target is not their active model."""
        return self._unsettled

    @property
    def with_min_copies(self) -> Set[str]:
        """The models of which some copies are kept loaded."""
        return self._with_min_copies

    def page(self, prefix: str = "", after: str = "", limit: int = 100) -> list[tuple[str, ModelRecord]]:
        """Up to `limit` models with `prefix` and above `after`, ordered by id."""
        return [
            (id, ModelRecord.decode(_split(raw)[1])) for id, raw in self._models.scan(prefix, after, limit)
        ]

    def ids(self, prefix: str = "", after: str = "", limit: int = 100) -> list[str]:
        """As `page`, without decoding the records."""
        return [id for id, _ in self._models.scan(prefix, after, limit)]

    def page_vmodels(
        self, prefix: str = "", after: str = "", limit: int = 100
    ) -> list[tuple[str, VModelRecord]]:
        """Up to `limit` vmodels with `prefix` and above `after`, ordered by id."""
        return [
            (id, VModelRecord.decode(_split(raw)[1])) for id, raw in self._vmodels.scan(prefix, after, limit)
        ]

    def used_since(self, since_ms: int, after: str, n: int) -> tuple[list[tuple[str, ModelRecord]], str]:
        """Of the next `n` models above `after`, those last used (Unix epoch) at `since_ms` or later; and where to go on, empty at
        the end. Only the records of those are decoded."""
        found, last, looked_at = [], "", 0
        for id, raw in self._models.scan(after=after, limit=n):
            looked_at, last = looked_at + 1, id
            used = _LAST_USED.search(raw)
            if used is not None and int(used[1]) >= since_ms:
                found.append((id, ModelRecord.decode(_split(raw)[1])))
        return found, last if looked_at == n else ""

    def count(self, prefix: str = "") -> int:
        """How many models have this prefix."""
        return self._models.count(prefix)

    def keys_between(self, after: str, last: str) -> Iterator[tuple[str, int]]:
        """(key, revision) of everything mirrored with after < key ≤ last: what a snapshot of that range must contain."""
        for prefix, packed in ((self._registry, self._models), (self._vmodels_prefix, self._vmodels)):
            if last < prefix:
                continue
            start = after[len(prefix) :] if after.startswith(prefix) else ""
            if not start and after > prefix:
                continue
            for id, raw in packed.scan(after=start):
                if prefix + id > last:
                    break
                yield prefix + id, _split(raw)[0]

    def apply(self, changes: Iterable[Changed], complete_to: int = 0) -> ChangedIds:
        """Take in changes, newest last; what is known already, or newer, is skipped. `complete_to` says that nothing up to that
        revision is missing now (0: says nothing). Returns what is different."""
        models: dict[str, bytes | None] = {}
        vmodels: dict[str, bytes | None] = {}
        for change in changes:
            if change.key.startswith(self._registry):
                id = change.key[len(self._registry) :]
                self._take(change, id, self._models, models, ModelRecord.check)
            elif change.key.startswith(self._vmodels_prefix):
                id = change.key[len(self._vmodels_prefix) :]
                self._take(change, id, self._vmodels, vmodels, VModelRecord.check)
        self._rename(vmodels)
        for id, raw in models.items():
            if raw is not None and _MIN_COPIES in raw:
                self._with_min_copies.add(id)
            else:
                self._with_min_copies.discard(id)
        self._models.update(models)
        self._vmodels.update(vmodels)
        for id in models:
            self._recent_models.pop(id, None)
        for id in vmodels:
            self._recent_vmodels.pop(id, None)
        if complete_to > self.revision:
            self.revision = complete_to
            if self._deleted:
                self._deleted = {key: at for key, at in self._deleted.items() if at > complete_to}
        return ChangedIds(set(models), set(vmodels))

    def _take(
        self,
        change: Changed,
        id: str,
        packed: PackedMap,
        pending: dict[str, bytes | None],
        check: Callable[[bytes], object],
    ) -> None:
        if change.revision <= self.revision:
            return
        known = pending.get(id) or packed.get(id)
        at = _split(known)[0] if known else self._broken.get(change.key, 0)
        if change.revision <= max(at, self._deleted.get(change.key, 0)):
            return
        if change.value is None:
            self._broken.pop(change.key, None)
            self._deleted[change.key] = change.revision
            if known:
                pending[id] = None
            return
        try:
            if not id or (not id.isprintable() and any(separator in id for separator in "\x00\x01\x02")):
                raise InvalidInput("Its id is not usable.")
            if b"\x00" in change.value:
                raise InvalidInput("It contains a zero byte.")
            check(change.value)
        except InvalidInput as error:
            self._broken[change.key] = change.revision
            if known:
                pending[id] = None
            self._report(
                id, f"The record {change.key!r} in the store cannot be read and is left alone: {error}"
            )
            return
        self._broken.pop(change.key, None)
        pending[id] = b"%d %b" % (change.revision, change.value)

    def _rename(self, vmodels: dict[str, bytes | None]) -> None:
        """Keep what is derived in step with the vmodels about to change: the names of models, and who is unsettled."""
        pairs: dict[str, bytes | None] = {}
        for vmodel, raw in vmodels.items():
            if (old := self._vmodels.get(vmodel)) is not None:
                active = VModelRecord.decode(_split(old)[1]).active
                if vmodel != name_of(active):
                    pairs[active + _PAIR + vmodel] = None
            self._unsettled.discard(vmodel)
            if raw is not None:
                record = VModelRecord.decode(_split(raw)[1])
                if vmodel != name_of(record.active):
                    pairs[record.active + _PAIR + vmodel] = b""
                if not record.settled:
                    self._unsettled.add(vmodel)
        self._names.update(pairs)


def _look(
    packed: PackedMap, id: str, decode: Callable[[bytes], Record], recent: dict[str, Record]
) -> Record | None:
    """Decode a record, and keep it among the `recent` ones."""
    raw = packed.get(id)
    if raw is None:
        return None
    if len(recent) >= _RECENT_MAX:
        del recent[next(iter(recent))]
    record = recent[id] = decode(_split(raw)[1])
    return record


def _split(raw: bytes) -> tuple[int, bytes]:
    revision, _, value = raw.partition(b" ")
    return int(revision), value
