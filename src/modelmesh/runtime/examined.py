"""What the files of a model are, seen before its load; and remembered, so that a later load need not wait for the disk."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from modelmesh.errors import Code, LoadFailed
from modelmesh.runtime.protocol import ModelSpec
from modelmesh.worker.artefact import read_artefact
from modelmesh.worker.formats.protocol import Format
from modelmesh.worker.formats.table import identify

REMEMBERED_MAX: Final = 10_000


class Examined(NamedTuple):
    """The format a model's files are of, what they weigh on disk, and what tells them from others (`Artefact.fingerprint`)."""

    format: Format
    fingerprint: str
    size_bytes: int


class Examinations:
    """Bounded, the oldest forgotten first. What is remembered may be out of date: whoever loads compares the fingerprint, and
    says `forget` when it is another."""

    def __init__(self, refusal: Callable[[str], str]) -> None:
        """`refusal` says why a path must not be loaded from; empty when it may. It reads the disk."""
        self._refusal = refusal
        self._remembered: OrderedDict[ModelSpec, Examined] = OrderedDict()

    async def of(self, spec: ModelSpec) -> Examined:
        """As remembered, else as on disk now. Raises as `afresh`."""
        return self.remembered(spec) or await self.afresh(spec)

    async def afresh(self, spec: ModelSpec) -> Examined:
        """As on disk now; remembered. Raises LoadFailed when nothing is there, it is of no format, or the path is refused."""
        found = self._remembered[spec] = await asyncio.to_thread(self._examine, spec)
        self._remembered.move_to_end(spec)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return found

    def remembered(self, spec: ModelSpec) -> Examined | None:
        """What is remembered of a model's files; None when nothing is."""
        found = self._remembered.get(spec)
        if found is not None:
            self._remembered.move_to_end(spec)
        return found

    def forget(self, spec: ModelSpec) -> None:
        """Look again the next time."""
        self._remembered.pop(spec, None)

    def _examine(self, spec: ModelSpec) -> Examined:
        if why := self._refusal(spec.path):
            raise LoadFailed(f'Model "{spec.id}": {why}', code=Code.FAILED_PRECONDITION, model=spec.id)
        try:
            artefact = read_artefact(spec.path)
            return Examined(identify(spec.type, artefact)[0], artefact.fingerprint(), artefact.size_bytes)
        except LoadFailed as failure:
            failure.model = spec.id
            raise
