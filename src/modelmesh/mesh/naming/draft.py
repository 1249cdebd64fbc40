"""A registry transaction in the making: it reads through the mirror, remembers what it read, and collects what to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from modelmesh.errors import FailedPrecondition, InvalidInput
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import REGISTRY, VMODELS, ModelRecord, VModelRecord
from modelmesh.store.protocol import Entry, Txn

T = TypeVar("T")


class Draft:
    """What was read is compared when committing, so a decision taken on old news is taken again on the news.

    Reading sees what the draft wrote. `known` holds keys as the store has them now (None: absent); the mirror
    stands in for all others. `refuses` says why nothing may be written; empty when it may."""

    def __init__(
        self, mirror: Mirror, root: str, known: Mapping[str, Entry | None], refuses: str = ""
    ) -> None:
        self._mirror = mirror
        self._root = root
        self._known = known
        self._refuses = refuses
        self._read: dict[str, int] = {}
        self._models: dict[str, ModelRecord | None] = {}
        self._vmodels: dict[str, VModelRecord | None] = {}
        self._written: set[str] = set()

    def model(self, id: str) -> ModelRecord | None:
        """The record of a model as this draft leaves it, or None; a stored record that is unreadable counts as absent."""
        if id not in self._models:
            key = self._root + REGISTRY + id
            if key in self._known:
                revision, record = _decoded(self._known[key], ModelRecord.decode)
            else:
                revision, record = self._mirror.model_at(id)
            self._read[key] = revision
            self._models[id] = record
        return self._models[id]

    def vmodel(self, id: str) -> VModelRecord | None:
        """As `model`, for a vmodel."""
        if id not in self._vmodels:
            key = self._root + VMODELS + id
            if key in self._known:
                revision, record = _decoded(self._known[key], VModelRecord.decode)
            else:
                revision, record = self._mirror.vmodel_at(id)
            self._read[key] = revision
            self._vmodels[id] = record
        return self._vmodels[id]

    def put_model(self, id: str, record: ModelRecord | None) -> None:
        """Write a model record; None deletes it. Raises FailedPrecondition."""
        if self.model(id) != record:
            self._check_writable()
            self._models[id] = record
            self._written.add(self._root + REGISTRY + id)

    def put_vmodel(self, id: str, record: VModelRecord | None) -> None:
        """Write a vmodel record; None deletes it. Raises FailedPrecondition."""
        if self.vmodel(id) != record:
            self._check_writable()
            self._vmodels[id] = record
            self._written.add(self._root + VMODELS + id)

    def _check_writable(self) -> None:
        if self._refuses:
            raise FailedPrecondition(self._refuses)

    def txn(self) -> Txn:
        """The transaction that compares all that was read and writes all that was written."""
        records: dict[str, ModelRecord | VModelRecord | None] = {
            **{self._root + REGISTRY + id: record for id, record in self._models.items()},
            **{self._root + VMODELS + id: record for id, record in self._vmodels.items()},
        }
        puts: dict[str, bytes] = {}
        deletes: list[str] = []
        for key in sorted(self._written):
            record = records[key]
            if record is not None:
                puts[key] = record.encode()
            elif self._read[key]:
                deletes.append(key)
        return Txn(compares=self._read, puts=puts, deletes=deletes)


def _decoded(entry: Entry | None, decode: Callable[[bytes], T]) -> tuple[int, T | None]:
    if entry is None:
        return 0, None
    try:
        return entry.revision, decode(entry.value)
    except InvalidInput:
        return entry.revision, None
