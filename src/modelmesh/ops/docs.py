"""The docs page of the admin API: one file, no assets from elsewhere; it renders /openapi.json in the browser."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response


async def docs_page(request: Request) -> Response:
    page = resources.files(__package__).joinpath("docs.html").read_text(encoding="utf-8")
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'self' 'unsafe-inline'"})
