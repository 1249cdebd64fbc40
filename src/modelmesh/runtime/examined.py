"""What the files of a model are, seen before its load; and remembered, so that a later load need not wait for the disk.

Disks can hang. Who looks has threads of its own, so that nothing else waits for them, and gives up after a while; a look that
hangs goes on until the disk answers, and is not repeated meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, NamedTuple

from modelmesh.errors import Code, LoadFailed
from modelmesh.runtime.protocol import ModelSpec
from modelmesh.worker.artefact import read_artefact
from modelmesh.worker.formats.protocol import Format
from modelmesh.worker.formats.table import identify

REMEMBERED_MAX: Final = 10_000
LOOK_S: Final = 5.0
"""Listing the files of a model takes milliseconds; whoever takes so long hangs."""
LOOKS_MAX: Final = 8
"""At once."""
POLL_S: Final = 1.0


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
        self._threads: ThreadPoolExecutor | None = None
        self._looks: dict[ModelSpec, tuple[asyncio.Future[Examined], float]] = {}
        """Those under way, and when (by the loop's time) each began."""

    async def of(self, spec: ModelSpec) -> Examined:
        """As remembered, else as on disk now. Raises as `afresh`."""
        return self.remembered(spec) or await self.afresh(spec)

    async def afresh(self, spec: ModelSpec) -> Examined:
        """As on disk now; remembered. Raises LoadFailed when nothing is there, it is of no format, the path is refused, or the
        disk hangs."""
        try:
            found = self._remembered[spec] = await self._look(spec)
        except TimeoutError:
            raise LoadFailed(
                f"The files at {spec.path} could not be looked at within {LOOK_S:g} s: their storage, or that of other models, "
                "does not answer.",
                code=Code.UNAVAILABLE,
                model=spec.id,
            ) from None
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

    async def hangs(self, spec: ModelSpec) -> bool:
        """Whether its storage does not answer."""
        try:
            await self._look(spec)
        except TimeoutError:
            return True
        except LoadFailed:
            return False
        return False

    async def wait_answer(self, spec: ModelSpec) -> None:
        """Return when its storage answers, whatever it says."""
        while await self.hangs(spec):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(POLL_S)

    def stop(self) -> None:
        """Begin no more looks. One that hangs is left alone."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _look(self, spec: ModelSpec) -> Examined:
        """Raises LoadFailed; TimeoutError when the disk does not answer, at once where that is known."""
        loop = asyncio.get_running_loop()
        if spec not in self._looks:
            self._threads = self._threads or ThreadPoolExecutor(LOOKS_MAX, thread_name_prefix="examine")
            look = loop.run_in_executor(self._threads, self._examine, spec)
            self._looks[spec] = look, loop.time()
            look.add_done_callback(lambda look: self._looked(spec, look))
        look, began_s = self._looks[spec]
        async with asyncio.timeout_at(began_s + LOOK_S):
            return await asyncio.shield(look)

    def _looked(self, spec: ModelSpec, look: asyncio.Future[Examined]) -> None:
        del self._looks[spec]
        with suppress(asyncio.CancelledError):
            look.exception()  # those who asked may be gone

    def _examine(self, spec: ModelSpec) -> Examined:
        if why := self._refusal(spec.path):
            raise LoadFailed(f'Model "{spec.id}": {why}', code=Code.FAILED_PRECONDITION, model=spec.id)
        try:
            artefact = read_artefact(spec.path)
            return Examined(identify(spec.type, artefact)[0], artefact.fingerprint(), artefact.size_bytes)
        except LoadFailed as failure:
            failure.model = spec.id
            raise
