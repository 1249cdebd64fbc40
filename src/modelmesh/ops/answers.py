"""What handlers of the admin API have in common: the id in the path, the size of a page, the JSON that is answered."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from modelmesh.errors import InvalidInput
from modelmesh.ops import operations as op

PAGE_MAX: Final = 250
"""A page of so many takes the event loop 4 ms of one instance, 8 ms of one of eight."""


def answer(value: BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")


def path_id(request: Request) -> str:
    """The `{id}` of the path. Raises InvalidInput for a blank one."""
    id: str = request.path_params["id"]
    if not id.strip():
        raise InvalidInput("The path names nothing.")
    return id


def page_limit(request: Request, limit_max: int = PAGE_MAX) -> int:
    """Raises InvalidInput."""
    limit: int = op.LIMIT.read(request)
    if not 1 <= limit <= limit_max:
        raise InvalidInput(f'limit: "{limit}" is not a number from 1 to {limit_max}.')
    return limit
