"""Probes: /live, /ready, and /prestop. Trailing slashes are tolerated, as by the predecessor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from modelmesh.ops.parts import Parts

_ANY_BODY = ["GET", "POST"]


def probes(parts: Parts) -> list[Route]:
    """/live says that the process answers, /ready that requests may come."""

    async def live(request: Request) -> Response:
        return PlainTextResponse("live\n")

    async def ready(request: Request) -> Response:
        view = parts.control.instance()
        if view.draining:
            return PlainTextResponse("draining\n", 503)
        return PlainTextResponse("ready\n") if view.ready else PlainTextResponse("starting\n", 503)

    return [
        *(Route(path, live, methods=_ANY_BODY) for path in ("/live", "/live/")),
        *(Route(path, ready) for path in ("/ready", "/ready/")),
    ]


def drain(parts: Parts) -> list[Route]:
    """/prestop for this container's own hook: begins to drain, and answers when what was in flight is done."""

    async def prestop(request: Request) -> Response:
        await parts.drain()
        return PlainTextResponse("drained\n")

    return _prestop(prestop)


def await_end(parts: Parts) -> list[Route]:
    """/prestop for the hooks of containers beside this one: only waits, since such a container may be restarted alone."""

    async def prestop(request: Request) -> Response:
        return PlainTextResponse("drained\n" if await parts.ended() else "still serving\n")

    return _prestop(prestop)


def _prestop(endpoint: Callable[[Request], Awaitable[Response]]) -> list[Route]:
    return [Route(path, endpoint, methods=_ANY_BODY) for path in ("/prestop", "/prestop/")]
