"""The part of the admin API that is about instances: which there are, how each is doing, and what may be asked of them."""

from __future__ import annotations

import os

from starlette.requests import Request
from starlette.responses import Response

from modelmesh.ops.answers import answer, path_id
from modelmesh.ops.instance_schemas import Addresses, Instance, MeshInstance, MeshInstances
from modelmesh.ops.operations import Operation
from modelmesh.ops.parts import Parts
from modelmesh.peers.protocol import Order


class Instances:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._control = parts.control

    async def get_instance(self, request: Request) -> Response:
        listening, relay = self._parts.listening(), self._parts.relay.stats()
        return answer(
            Instance.of(
                self._control.instance(),
                self._control.memory(),
                Addresses.model_construct(grpc=listening.grpc, rest=listening.rest, ops=listening.ops),
                pid=os.getpid(),
                folder=self._parts.folder,
                budget_bytes=self._parts.budget_bytes,
                requests_total=relay.counters.get("requests", 0),
                in_flight=relay.in_flight,
                parked=relay.parked_requests,
            )
        )

    async def list_instances(self, request: Request) -> Response:
        members = [MeshInstance.of(view) for view in self._control.members()]
        return answer(MeshInstances.model_construct(instances=members))

    async def cordon_instance(self, request: Request) -> Response:
        return await self._order(request, Order.CORDON)

    async def uncordon_instance(self, request: Request) -> Response:
        return await self._order(request, Order.UNCORDON)

    async def drain_instance(self, request: Request) -> Response:
        return await self._order(request, Order.DRAIN)

    async def _order(self, request: Request, order: Order) -> Response:
        await self._control.order(path_id(request), order)
        return Response(status_code=204)

    def operations(self) -> tuple[Operation, ...]:
        """In the order of the docs page."""
        return (
            Operation(
                "GET", "/instance", "The instance that answers, at a glance", self.get_instance, Instance
            ),
            Operation("GET", "/instances", "The instances of the mesh", self.list_instances, MeshInstances),
            Operation(
                "POST",
                "/instances/{id}:cordon",
                "Place nothing new there; what is loaded is served",
                self.cordon_instance,
            ),
            Operation("POST", "/instances/{id}:uncordon", "Place models there again", self.uncordon_instance),
            Operation(
                "POST",
                "/instances/{id}:drain",
                "Begin to hand over and then to serve no more, as before a stop; not to be taken back",
                self.drain_instance,
            ),
        )
