"""`grpc.health.v1.Health`: the server as a whole (empty name) and the inference service are healthy when it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, cast

import grpc

from modelmesh.errors import ModelNotFound
from modelmesh.management import inference
from modelmesh.management.server import Context, Service, unary
from modelmesh.mesh.control import ControlPlane
from modelmesh.wire.generated import health_pb2 as pb

NAME: Final = "grpc.health.v1.Health"
_KNOWN: Final = ("", inference.NAME)
_LOOK_EVERY_S: Final = 0.25


class Health:
    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        """NOT_FOUND for services not offered, as the protocol demands."""
        if request.service not in _KNOWN:
            raise ModelNotFound(f'There is no service "{request.service}" here.')
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def watch(
        self, request: pb.HealthCheckRequest, context: Context
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """The status now and at each change, until the client leaves."""
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                yield pb.HealthCheckResponse(status=status)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _status(self, service: str) -> pb.HealthCheckResponse.ServingStatus:
        if service not in _KNOWN:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        view = self._control.instance()
        serving = view.ready and not view.draining
        return pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING


def service(control: ControlPlane) -> Service:
    health = Health(control)
    watch = grpc.unary_stream_rpc_method_handler(
        cast(Any, health.watch),
        request_deserializer=pb.HealthCheckRequest.FromString,
        response_serializer=pb.HealthCheckResponse.SerializeToString,
    )
    return Service(
        NAME, {"Check": unary(health.check, pb.HealthCheckRequest, pb.HealthCheckResponse), "Watch": watch}
    )
