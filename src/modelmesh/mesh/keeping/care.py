"""The copies that no request asks for: those that are to be kept, those that demand wants, and the surplus. Put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import Queueing
from modelmesh.journal import Journal
from modelmesh.mesh.cache.asks import Asks
from modelmesh.mesh.cache.copies import Copies
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.cache.usage import UsageReader
from modelmesh.mesh.keeping.keeping import Keeping
from modelmesh.mesh.keeping.min_copies import MinCopies
from modelmesh.mesh.keeping.scaling import Scaling
from modelmesh.mesh.keeping.upkeep import Upkeep
from modelmesh.mesh.measures import Measures
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.tuning import Tuning
from modelmesh.registry.mirror import Mirror


class Care:
    """`upkeep` follows what changes; there is no scaling without others."""

    def __init__(
        self,
        mirror: Mirror,
        copies: Copies,
        sites: Sites,
        usage: UsageReader,
        asks: Asks,
        failures: Failures,
        others: Others | None,
        keeping: Keeping,
        clock: Clock,
        journal: Journal,
        measures: Measures,
        tuning: Tuning,
        *,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        settle: Callable[[], None],
        draining: Callable[[], bool],
    ) -> None:
        self._spawn = spawn
        self.upkeep = Upkeep(mirror, copies, sites, others, on_wanting=keeping.note, on_spare=self._spare)
        self._scaling: Scaling | None = None
        if others is not None:
            others.on_copies = self.upkeep.changed_abroad
            self._scaling = Scaling(
                copies, sites, usage, others, clock, journal, measures, tuning,
                holders_of=self.upkeep.holders, spawn=spawn, settle=settle,
            )  # fmt: skip
        keeping.add(
            MinCopies(
                mirror, copies, others, failures, clock, journal,
                load_here=lambda model, why: asks.load(model, why, False, None), draining=draining,
            )
        )  # fmt: skip

    def start(self) -> None:
        """Look after copies from now on."""
        if self._scaling is not None:
            self._spawn(self._scaling.run(), "scaling")

    def used(self, model: str) -> None:
        """It was used here."""
        if self._scaling is not None:
            self._scaling.used(model)

    def queueing(self, event: Queueing) -> None:
        """Requests wait for slots of a model."""
        if self._scaling is not None:
            self._scaling.queueing(event)

    def _spare(self, model: str, is_spare: bool) -> None:
        if self._scaling is not None:
            self._scaling.spare(model, is_spare)
