"""The instances of the mesh, side by side: this one, and the others as they told of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from modelmesh.mesh.fleet import Fleet
from modelmesh.mesh.peering.condition import Condition
from modelmesh.mesh.views import MemberView
from modelmesh.peers.protocol import Load, Member

_UNTOLD: Final = Load(0, 0, 0.0, 0.0, 0.0, 0.0)


class Roster:
    """`me` says how this instance is known; no fleet: it is alone. `trouble` says why one is not heard."""

    def __init__(
        self,
        me: Callable[[], Member],
        condition: Condition,
        fleet: Fleet | None,
        trouble: Callable[[str], str],
    ) -> None:
        self._me = me
        self._condition = condition
        self._fleet = fleet
        self._trouble = trouble

    def members(self) -> list[MemberView]:
        """All of them by id."""
        views = [_view(self._me(), self._condition.load(), here=True, suspected=False, trouble="")]
        views += [
            _view(
                peer.member,
                peer.load,
                here=False,
                suspected=peer.silent or peer.lost,
                trouble=self._trouble(peer.id),
            )
            for peer in self._fleet or ()
        ]
        return sorted(views, key=lambda view: view.id)

    @property
    def tells_of_mesh(self) -> bool:
        """Whether this is the one instance that exports what is about the whole mesh: of those that answer, the one that is there
        longest. (The predecessor's leader, by the order in which candidates came.)"""
        answering = [self._me(), *(peer.member for peer in self._fleet or () if not peer.silent)]
        eldest = min(answering, key=lambda member: (member.started_wall_ms, member.id))
        return eldest.id == answering[0].id


def _view(member: Member, told: Load | None, *, here: bool, suspected: bool, trouble: str) -> MemberView:
    load = told or _UNTOLD
    return MemberView(
        id=member.id,
        here=here,
        address=member.address,
        zone=member.zone,
        host=member.host,
        labels=sorted(member.labels),
        version=member.version,
        revision=member.revision,
        started_wall_s=member.started_wall_ms / 1000,
        capacity_bytes=load.capacity_bytes,
        free_bytes=load.free_bytes,
        price=load.price,
        requests_per_s=load.rate_per_s,
        busyness=load.busyness,
        load_queue_s=load.load_queue_s,
        copies=load.copies,
        loads_running=load.loads_running,
        loads_queued=load.loads_queued,
        loads_total=load.loads_total,
        evictions_total=load.evictions_total,
        draining=load.draining,
        cordoned=load.cordoned,
        suspected=suspected,
        told=told is not None,
        trouble=trouble,
    )
