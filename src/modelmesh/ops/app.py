"""The ASGI applications of the HTTP ports; the ops port's is the whole. Probes are there at once; metrics and the admin API bring
their libraries along when they are first asked for, so that an instance nobody asks starts fast and stays small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from modelmesh import __version__
from modelmesh.ops import health
from modelmesh.ops.parts import Parts
from modelmesh.ops.problems import answer_error


class Lazy:
    """An application that is built in a thread when the first request comes."""

    def __init__(self, build: Callable[[], ASGIApp]) -> None:
        self._build = build
        self._building: asyncio.Future[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._building is None:
            self._building = asyncio.ensure_future(asyncio.to_thread(self._build))
        application = await asyncio.shield(self._building)
        await application(scope, receive, send)


def ops_app(parts: Parts) -> Starlette:
    """The whole ops port of one instance."""
    return _app(
        *health.probes(parts),
        *health.drain(parts),
        *_metrics(parts),
        Route("/", lambda request: RedirectResponse("/docs")),
        Mount("/", Lazy(lambda: _admin_app(parts))),
    )


def probe_app(parts: Parts) -> Starlette:
    """/ready and /live."""
    return _app(*health.probes(parts))


def prestop_app(parts: Parts) -> Starlette:
    """/prestop, for the containers beside this one."""
    return _app(*health.await_end(parts))


def metrics_app(parts: Parts) -> Starlette:
    """/metrics."""
    return _app(*_metrics(parts))


def _app(*routes: BaseRoute) -> Starlette:
    return Starlette(routes=routes, exception_handlers={404: answer_error, 405: answer_error})


def _metrics(parts: Parts) -> list[Route]:
    async def metrics(request: Request) -> Response:
        from modelmesh.ops.metrics import exposition

        return await exposition(parts, request)

    return [Route("/metrics", metrics), Route("/metrics/", metrics)]


def _admin_app(parts: Parts) -> Starlette:
    from modelmesh.ops.admin import operations
    from modelmesh.ops.docs import docs_page
    from modelmesh.ops.operations import Operation, openapi

    offered = operations(parts)
    document = openapi(offered, __version__)

    async def read_document(request: Request) -> Response:
        return JSONResponse(document)

    def route(operation: Operation) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return await operation.handler(request)
            except Exception as error:
                return await answer_error(request, error)

        return Route(operation.path.replace("{id}", "{id:path}"), endpoint, methods=[operation.method])

    return _app(
        Route("/openapi.json", read_document),
        Route("/docs", docs_page),
        *(route(operation) for operation in offered),
    )
