"""Holding what vmodels under way need: their targets, until the switch and a little beyond, and their active models until then.

Each instance derives this from the records alone, for its own copies. So all hold the same whoever asked for a copy, and a keeper
that dies leaves no hold behind.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from modelmesh.registry.mirror import ChangedIds, Mirror
from modelmesh.registry.records import VModelRecord

VMODEL_TARGET: Final = "vmodel target"
"""Why the model is held that a vmodel is to point at, until a little after it does."""
VMODEL_ACTIVE: Final = "vmodel active"
"""Why the model is held that a vmodel points at, until it points at another."""
RESIDENCE_LOADS: Final = 3
"""Load times that a target is held beyond the switch: time to prove useful before it may be evicted."""
RESIDENCE_S: Final = (2.0, 60.0)
"""The least and the most of that."""

Need = tuple[str, str]
"""A model, and why it is held."""


class Held(Protocol):
    """A copy, as far as it matters."""

    @property
    def load_s(self) -> float: ...


class Holder(Protocol):
    """What holds copies here: `copies.Copies`."""

    def get(self, model: str) -> Held | None: ...
    def hold(self, model: str, reason: str) -> None: ...


class Releases(Protocol):
    """Ends holds: `asks.Asks`."""

    def release(self, model: str, why: str) -> None: ...


class Targets:
    """`start` once, and `follow` each change of the mirror. One owner, the event loop."""

    def __init__(self, mirror: Mirror, copies: Holder, asks: Releases) -> None:
        self._mirror = mirror
        self._copies = copies
        self._asks = asks
        self._needs: dict[str, tuple[Need, ...]] = {}
        """vmodel -> what it has held here."""
        self._needed_by: dict[Need, set[str]] = {}
        self._leaving: dict[str, asyncio.TimerHandle] = {}
        """Former targets that are held a little longer."""

    def start(self) -> None:
        self.follow(ChangedIds(vmodels=set(self._mirror.unsettled)))

    def stop(self) -> None:
        """Nothing is released any more. Idempotent."""
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()

    def follow(self, changed: ChangedIds) -> None:
        """The mirror is different."""
        for vmodel in sorted(changed.vmodels):
            record = self._mirror.vmodel(vmodel) if vmodel in self._mirror.unsettled else None
            now = _needs(record)
            before = self._needs.pop(vmodel, ())
            if now:
                self._needs[vmodel] = now
            for need in now:
                self._need(need, vmodel)
            for need in before:
                if need not in now:
                    self._need_no_more(need, vmodel)

    def _need(self, need: Need, vmodel: str) -> None:
        model, why = need
        if why == VMODEL_TARGET and model in self._leaving:
            self._leaving.pop(model).cancel()
        self._needed_by.setdefault(need, set()).add(vmodel)
        self._copies.hold(model, why)

    def _need_no_more(self, need: Need, vmodel: str) -> None:
        vmodels = self._needed_by[need]
        vmodels.discard(vmodel)
        if vmodels:
            return
        del self._needed_by[need]
        model, why = need
        copy = self._copies.get(model)
        record = self._mirror.vmodel(vmodel)
        if why == VMODEL_TARGET and copy is not None and record is not None and record.active == model:
            least_s, most_s = RESIDENCE_S
            stays_s = min(least_s + RESIDENCE_LOADS * copy.load_s, most_s)
            self._leaving[model] = asyncio.get_running_loop().call_later(stays_s, self._leave, model)
        else:
            self._asks.release(model, why)

    def _leave(self, model: str) -> None:
        del self._leaving[model]
        self._asks.release(model, VMODEL_TARGET)


def _needs(record: VModelRecord | None) -> tuple[Need, ...]:
    """What a vmodel under way has held. One whose target failed is tried again, but perhaps for long: its active model has to be
    worth its memory then. A canary that failed its trial is not."""
    if record is None or record.rolled_back:
        return ()
    target = (record.target, VMODEL_TARGET)
    return (target,) if record.failed else (target, (record.active, VMODEL_ACTIVE))
