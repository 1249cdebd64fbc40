"""The whole mesh as one instance sees it: models, instances, what happened, and what may be ordered. Put together here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from modelmesh.clock import Clock
from modelmesh.journal import Journal
from modelmesh.mesh.cache.copies import Copies
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.cache.histories import Histories
from modelmesh.mesh.peering.condition import Condition
from modelmesh.mesh.peering.listing import Listing
from modelmesh.mesh.peering.orders import Orders
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.peering.reports import Reports
from modelmesh.mesh.peering.roster import Roster
from modelmesh.mesh.recollection import Recollection
from modelmesh.mesh.views import MeshCount
from modelmesh.peers.protocol import Member, Peers
from modelmesh.registry.mirror import Mirror

COUNTED_S: Final = 10.0
"""Numbers of the whole mesh may be so old: to count it costs some 20 ms per 10,000 copies."""


class Overview:
    """`me` says how this instance is known. No peers and no others: it is alone."""

    def __init__(
        self,
        me: Callable[[], Member],
        mirror: Mirror,
        copies: Copies,
        failures: Failures,
        histories: Histories,
        condition: Condition,
        journal: Journal,
        clock: Clock,
        peers: Peers | None,
        others: Others | None,
    ) -> None:
        id, fleet = me().id, None if others is None else others.fleet
        self._clock = clock
        self.reports = Reports(mirror, copies, failures, histories, clock, id, fleet)
        self.listing = Listing(id, mirror, copies, failures, fleet, self.reports, clock)
        self.roster = Roster(me, condition, fleet, lambda id: "" if peers is None else peers.trouble(id))
        self.recollection = Recollection(id, journal, peers, fleet)
        self.orders = Orders(id, condition, peers, others, journal)
        self._count: MeshCount | None = None
        self._counted_s = 0.0

    async def census(self) -> MeshCount | None:
        """See `ControlPlane.census`."""
        if not self.roster.tells_of_mesh:
            return None
        now_s = self._clock.monotonic_s()
        if self._count is None or now_s >= self._counted_s + COUNTED_S:
            self._count, self._counted_s = await self.listing.count(), now_s
        return self._count
