"""Probes: /live, /ready, and /prestop, which returns when what was in flight is done."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from modelmesh.ops.parts import Parts


def routes(parts: Parts) -> list[Route]:
    """Trailing slashes are tolerated, as by the predecessor (its probe port answered both)."""

    async def live(request: Request) -> Response:
        return PlainTextResponse("live\n")

    async def ready(request: Request) -> Response:
        view = parts.control.instance()
        if view.draining:
            return PlainTextResponse("draining\n", 503)
        return PlainTextResponse("ready\n") if view.ready else PlainTextResponse("starting\n", 503)

    async def prestop(request: Request) -> Response:
        await parts.drain()
        return PlainTextResponse("drained\n")

    return [
        *(Route(path, live, methods=["GET", "POST"]) for path in ("/live", "/live/")),
        *(Route(path, ready) for path in ("/ready", "/ready/")),
        *(Route(path, prestop, methods=["GET", "POST"]) for path in ("/prestop", "/prestop/")),
    ]
