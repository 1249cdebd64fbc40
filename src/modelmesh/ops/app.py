"""The ASGI application of the ops port. Probes are there at once; metrics and the admin API bring their libraries along
when they are first asked for, so that an instance nobody asks starts fast and stays small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
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


def create_app(parts: Parts) -> Starlette:
    """The whole ops port of one instance."""

    async def metrics(request: Request) -> Response:
        from modelmesh.ops.metrics import exposition

        return exposition(parts, request)

    return Starlette(
        routes=[
            *health.routes(parts),
            Route("/metrics", metrics),
            Route("/metrics/", metrics),
            Route("/", lambda request: RedirectResponse("/docs")),
            Mount("/", Lazy(lambda: _admin_app(parts))),
        ],
        exception_handlers={404: answer_error, 405: answer_error},
    )


def _admin_app(parts: Parts) -> Starlette:
    from modelmesh.ops.admin import Admin, operations
    from modelmesh.ops.docs import docs_page
    from modelmesh.ops.operations import Operation, openapi

    admin, offered = Admin(parts), operations()
    document = openapi(offered, __version__)

    async def read_document(request: Request) -> Response:
        return JSONResponse(document)

    def route(operation: Operation) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return await operation.handler(admin, request)
            except Exception as error:
                return await answer_error(request, error)

        return Route(operation.path.replace("{id}", "{id:path}"), endpoint, methods=[operation.method])

    return Starlette(
        routes=[
            Route("/openapi.json", read_document),
            Route("/docs", docs_page),
            *(route(operation) for operation in offered),
        ],
        exception_handlers={404: answer_error, 405: answer_error},
    )
