"""The mesh as one cache, for what is done where nobody waits: what is loaded anywhere, who keeps what, whether memory is free.

An instance without others is the whole mesh.
"""

from __future__ import annotations

from collections.abc import Callable

from modelmesh.errors import NoCapacity
from modelmesh.mesh.cache.asks import Asks
from modelmesh.mesh.cache.copies import Copies
from modelmesh.mesh.cache.failures import Failures, Standing
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.views import State
from modelmesh.peers.protocol import Ask, Load
from modelmesh.policy.placement import spare_bytes
from modelmesh.policy.urgency import Why
from modelmesh.registry.mirror import Mirror


class Whole:
    """`load_of` says how this instance is doing; `others` is None where there are none."""

    def __init__(
        self,
        mirror: Mirror,
        copies: Copies,
        sites: Sites,
        failures: Failures,
        asks: Asks,
        load_of: Callable[[], Load],
        others: Others | None,
    ) -> None:
        self._mirror = mirror
        self._copies = copies
        self._sites = sites
        self._failures = failures
        self._asks = asks
        self._load_of = load_of
        self._others = others

    def keeps(self, model: str) -> bool:
        """Whether this instance is the keeper of a model."""
        return self._others is None or self._others.provider.keeps(model)

    def is_loaded(self, model: str) -> bool:
        """Whether it is loaded somewhere. An instance that does not answer counts until it is gone."""
        copy = self._copies.get(model)
        if copy is not None and copy.state is State.LOADED and copy.retirement is None:
            return True
        return self._others is not None and bool(self._others.fleet.holders(model))

    def is_held(self, model: str) -> bool:
        """Whether it is loaded somewhere, or about to be."""
        copy = self._copies.get(model)
        if copy is not None and copy.state in (State.QUEUED, State.LOADING):
            return True
        return self.is_loaded(model) or (self._others is not None and self._others.loading(model))

    def standing(self, model: str) -> Standing | None:
        """The failure for which nobody would try to load it now."""
        return self._failures.standing(model) if self._others is None else self._others.standing(model)

    def has_failed(self, model: str) -> bool:
        """Whether a failure to load it stands."""
        return self.standing(model) is not None

    def typical_bytes(self) -> int:
        """What a copy weighs on average; 0 when there is none."""
        return self._copies.typical_bytes()

    def is_free(self) -> bool:
        """Whether memory is free, here or where copies may be placed, beyond what stays free."""
        mine = self._load_of()
        loads = [] if mine.draining or mine.cordoned else [mine]
        if self._others is not None:
            loads += [peer.load for peer in self._others.fleet if peer.takes_loads and peer.load is not None]
        return any(spare_bytes(load.free_bytes, load.capacity_bytes) > 0 for load in loads)

    def is_pressed(self) -> bool:
        """Whether loads that somebody waits for are queued here."""
        return any(
            copy.want is not None and copy.want.why < Why.SCALE
            for site in self._sites
            for copy in site.loads.waiting()
        )

    async def provide(self, ask: Ask) -> None:
        """Have it loaded, as its keeper. Raises what kept it from that."""
        if self._others is not None:
            await self._others.provider.provide(ask)
            return
        mine, record = self._load_of(), self._mirror.model(ask.model)
        size_bytes = (record.size_bytes if record is not None else 0) or self.typical_bytes()
        if ask.need is Why.PREWARM and spare_bytes(mine.free_bytes, mine.capacity_bytes) < size_bytes:
            raise NoCapacity(f"No memory is free for model {ask.model}.", model=ask.model)
        await self._asks.load(ask.model, ask.why, False, ask.deadline_s, need=ask.need)
