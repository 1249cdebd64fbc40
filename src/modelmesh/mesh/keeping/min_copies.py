"""The keeper's duty to models of which some copies are always kept: have those loaded that are missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from modelmesh.clock import Clock
from modelmesh.errors import LoadFailed, ModelMeshError, code_of
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.copies import Copies, Purpose
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.views import State
from modelmesh.registry.mirror import Mirror


class MinCopies:
    """A `keeping.Duty`. `load_here` loads a model in this instance when there are no others by setting."""

    def __init__(
        self,
        mirror: Mirror,
        copies: Copies,
        others: Others | None,
        failures: Failures,
        clock: Clock,
        journal: Journal,
        *,
        load_here: Callable[[str, str], Awaitable[None]],
        draining: Callable[[], bool],
    ) -> None:
        self._mirror = mirror
        self._copies = copies
        self._others = others
        self._failures = failures
        self._clock = clock
        self._journal = journal
        self._load_here = load_here
        self._draining = draining

    def candidates(self) -> Sequence[str]:
        return list(self._mirror.with_min_copies)

    def needs(self, model: str) -> bool:
        """Whether fewer are loaded or being loaded than there should be, and there is an instance for one more."""
        record = self._mirror.model(model)
        if record is None or not record.keep.min_copies:
            return False
        mine = not self._draining() and self._is_here(model)
        if self._others is None:
            return not mine and not self._draining()
        if self._others.fleet.doubts_itself or not self._others.fleet.whole:
            return False
        n = mine + len(self._others.fleet.staying(model, loading=True))
        return n < record.keep.min_copies and self._others.provider.places.has_place(model, record)

    def _is_here(self, model: str) -> bool:
        copy = self._copies.get(model)
        if copy is None or copy.state is State.UNLOADING:
            return False
        return copy.retirement is None or copy.retirement.purpose is Purpose.ROOM

    async def attend(self, model: str) -> None:
        record = self._mirror.model(model)
        if record is None:
            return
        n = record.keep.min_copies
        why = "a copy is always kept" if n == 1 else f"{n} copies are always kept"
        try:
            self._expect_no_bad_artefact(model)
            if self._others is None:
                await self._load_here(model, why)
            else:
                await self._others.have_copies(model, n, why)
        except ModelMeshError as error:
            self._journal.record(
                Did.WARNED, model, f"Fewer than {n} copies are loaded: {error}", min_copies=n
            )
            raise

    def _expect_no_bad_artefact(self, model: str) -> None:
        """Raises the failure of a model that cannot be loaded anywhere, with the time until that is looked at again."""
        others, failures = self._others, self._failures
        standing = failures.standing(model) if others is None else others.standing(model)
        if standing is not None and standing.permanent:
            left_s = standing.expires_s - self._clock.monotonic_s()
            error = standing.error
            raise LoadFailed(str(error), code=code_of(error), model=model, retry_after_s=left_s)
