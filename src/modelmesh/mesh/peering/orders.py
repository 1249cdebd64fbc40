"""What an operator asks of an instance: cordon, uncordon, drain; from any instance, of any.

An order is for the running process: whoever starts again with the same id is cordoned by nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from modelmesh.errors import FailedPrecondition, InstanceNotFound
from modelmesh.journal import Did, Journal
from modelmesh.mesh.peering.condition import Condition
from modelmesh.mesh.peering.others import Others
from modelmesh.peers.protocol import Order, Peers

_ALONE: Final = (
    "There is no other instance to load models, so this one is not cordoned: nothing could be loaded any more. "
    "Start another one first."
)


class Orders:
    """`on_drain` begins what comes before a stop, and does not wait for it; whoever owns the life of the instance sets it."""

    def __init__(
        self, me: str, condition: Condition, peers: Peers | None, others: Others | None, journal: Journal
    ) -> None:
        self._me = me
        self._condition = condition
        self._peers = peers
        self._others = others
        self._journal = journal
        self.on_drain: Callable[[], object] = lambda: None

    async def give(self, instance: str, order: Order) -> None:
        """Have an instance begin it. Raises InstanceNotFound, RuntimeUnavailable, and what the instance itself raises."""
        if instance == self._me:
            self.obey(order, "")
        elif self._peers is None or self._others is None or self._others.fleet.get(instance) is None:
            raise InstanceNotFound.named(instance)
        else:
            await self._peers.order(instance, order)

    def obey(self, order: Order, asker: str) -> None:
        """Begin it here. `asker` is the instance that passed it on. Raises FailedPrecondition."""
        by = f"by way of {asker}" if asker else "here"
        match order:
            case Order.CORDON if not self._condition.cordoned:
                if self._others is None or not len(self._others.fleet):
                    raise FailedPrecondition(_ALONE)
                self._condition.cordon(True)
                self._journal.record(
                    Did.CORDONED,
                    "",
                    f"Asked for {by}: nothing new is placed here; what is loaded is served.",
                    copies=self._condition.load().copies,
                )
            case Order.UNCORDON if self._condition.cordoned:
                self._condition.cordon(False)
                self._journal.record(Did.UNCORDONED, "", f"Asked for {by}: models are placed here again.")
            case Order.DRAIN if not self._condition.load().draining:
                self._journal.record(
                    Did.DRAINING, "", f"Asked for {by}: this instance hands over and serves no more."
                )
                self.on_drain()
            case _:
                return
        if self._others is not None:
            self._others.announcer.tick(at_once=True)
