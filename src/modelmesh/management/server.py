"""The gRPC server of the control plane: on a unix socket, behind the data plane, which relays control methods to it.

A face is a `Service`: its full name and its methods.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import grpc
import grpc.aio

from modelmesh.errors import Code, ModelMeshError, code_of
from modelmesh.mesh.control import Admit, ControlPlane

_STATUS: Final = {status.value[0]: status for status in grpc.StatusCode}
_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service: its full name and its handlers by method name."""

    name: str
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]]


class ControlServer:
    """Serves from `start` to `stop` on the unix socket `path`. Without `admit` everything may be registered. `more`: services
    that are not for clients, so reflection does not list them."""

    def __init__(
        self,
        path: Path,
        message_bytes_max: int,
        admit: Admit = lambda registration: registration,
        more: Sequence[Service] = (),
    ) -> None:
        self._path = path
        self._message_bytes_max = message_bytes_max
        self._admit = admit
        self._more = more
        self._server: grpc.aio.Server | None = None

    async def start(self, control: ControlPlane) -> None:
        """Returns when calls are accepted."""
        from modelmesh.management import health, inference, model_mesh, reflection

        services = [
            inference.service(control),
            health.service(control),
            *model_mesh.services(control, self._admit),
        ]
        services += [*reflection.services([service.name for service in services]), *self._more]
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._message_bytes_max),
                ("grpc.max_send_message_length", -1),
            ]
        )
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(service.name, service.methods) for service in services)
        )
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()

    async def stop(self, grace_s: float = 1.0) -> None:
        """Let calls finish for `grace_s`, then close; the socket is removed. Idempotent."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
            self._path.unlink(missing_ok=True)


def unary(
    handle: Callable[[Request, Context], Awaitable[Answer]],
    request: type[Request],
    answer: type[Answer],
    end: Callable[[Context, ModelMeshError], Awaitable[None]] | None = None,
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler whose `ModelMeshError`s become statuses of the errors table, with retry information in a trailer (`abort`,
    unless it is to `end` otherwise)."""

    async def call(message: Request, context: Context) -> Answer:
        try:
            return await handle(message, context)
        except ModelMeshError as error:
            await (end or abort)(context, error)
            raise

    return grpc.unary_unary_rpc_method_handler(
        cast(Any, call),
        request_deserializer=cast(Any, request).FromString,
        response_serializer=cast(Any, answer).SerializeToString,
    )


async def abort(context: Context, error: ModelMeshError, trailers: tuple[tuple[str, str], ...] = ()) -> None:
    """End the call with the error's status."""
    code = code_of(error)
    if code is Code.INTERNAL:
        _log.error("%s", error, exc_info=error)
    if error.retry_after_s is not None:
        trailers = (*trailers, ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))))
    await context.abort(_STATUS[int(code)], error.message, trailers)


def remaining_s(context: Context) -> float | None:
    """What is left of the caller's deadline; None without one."""
    remaining = context.time_remaining()
    return None if remaining is None else max(0.0, float(remaining))


__all__: Sequence[str] = ("Context", "ControlServer", "Service", "abort", "remaining_s", "unary")
