"""What a registry that the predecessor wrote means to us: what is served, what is passed over, what stands in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from modelmesh.errors import InvalidInput
from modelmesh.registry.records import REGISTRY, VMODELS, ModelRecord, VModelRecord

INSTANCES: Final = "instances/"
"""Where each instance of the predecessor keeps a key while it lives."""
CONFIG: Final = "config/"


class Stored(Protocol):
    """A key with its value; `modelmesh.store.protocol.Entry` is one."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> bytes: ...


@dataclass(slots=True)
class Survey:
    """Keys and ids in the order of the store."""

    types: Counter[str] = field(default_factory=Counter)
    """How many models there are of each type."""
    refused: dict[str, str] = field(default_factory=dict)
    """Models whose path will not be loaded from here, and why."""
    n_vmodels: int = 0
    moving: list[str] = field(default_factory=list)
    """Vmodels that are on their way to another model."""
    dangling: dict[str, str] = field(default_factory=dict)
    """Vmodels that point at a model that is not registered, and at which."""
    n_claims: int = 0
    """Entries of `instanceIds`: where the predecessor has models loaded."""
    n_failures: int = 0
    """Entries of `failedIn`: where the predecessor failed to load models."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Keys whose record cannot be read, and why."""
    instances: list[str] = field(default_factory=list)
    """Instances of the predecessor that are alive."""
    config: dict[str, str] = field(default_factory=dict)
    """Its dynamic settings."""

    @property
    def n_models(self) -> int:
        return self.types.total()


def survey(entries: Iterable[Stored], refusal: Callable[[str], str]) -> Survey:
    """Look through all that is stored, ordered by key. `refusal` says why a path is not loaded from; empty when it is."""
    found = Survey()
    models: set[str] = set()
    for entry in entries:
        try:
            if entry.key.startswith(REGISTRY):
                id = entry.key.removeprefix(REGISTRY)
                _take_model(found, id, ModelRecord.decode(entry.value), refusal)
                models.add(id)
            elif entry.key.startswith(VMODELS):
                record = VModelRecord.decode(entry.value)
                _take_vmodel(found, entry.key.removeprefix(VMODELS), record, models)
            elif entry.key.startswith(INSTANCES):
                found.instances.append(entry.key.removeprefix(INSTANCES))
            elif entry.key.startswith(CONFIG):
                found.config[entry.key.removeprefix(CONFIG)] = entry.value.decode(errors="replace")
        except InvalidInput as error:
            found.unreadable[entry.key] = str(error)
    return found


def _take_model(found: Survey, id: str, record: ModelRecord, refusal: Callable[[str], str]) -> None:
    found.types[record.type] += 1
    if why := refusal(record.path):
        found.refused[id] = why
    found.n_claims += _count(record.other.get("instanceIds"))
    found.n_failures += _count(record.other.get("failedIn"))


def _take_vmodel(found: Survey, id: str, record: VModelRecord, models: set[str]) -> None:
    """Models come before vmodels in the order of keys, so all are known."""
    found.n_vmodels += 1
    if not record.settled:
        found.moving.append(id)
    missing = [model for model in (record.active, record.target) if model not in models]
    if missing:
        found.dangling[id] = missing[0]


def _count(value: Any) -> int:
    return len(value) if isinstance(value, dict) else 0
