"""Errors of the admin API: `{"error": {code, message, model, retry_after_s}}` with the status of the errors table."""

from __future__ import annotations

import json
import logging
import math
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from modelmesh.errors import Code, ModelMeshError, code_of, http_status_of

_log = logging.getLogger(__name__)

_CODE_OF_STATUS = {
    400: Code.INVALID_ARGUMENT,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    413: Code.RESOURCE_EXHAUSTED,
}


def problem(error: ModelMeshError) -> dict[str, Any]:
    """The inner object of an error: `code` is the name of the gRPC code, `model` is empty when no model is concerned."""
    return {
        "code": code_of(error).name,
        "message": error.message,
        "model": error.model,
        "retry_after_s": error.retry_after_s,
    }


async def answer_error(request: Request, error: Exception) -> Response:
    """The response for an error raised by a handler; what is not ours is logged and becomes INTERNAL."""
    headers: dict[str, str] = {}
    if isinstance(error, ModelMeshError):
        status, body = http_status_of(error), problem(error)
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(max(0, math.ceil(error.retry_after_s)))
    elif isinstance(error, HTTPException):
        code = _CODE_OF_STATUS.get(error.status_code, Code.UNKNOWN)
        status, body = error.status_code, _plain(code, _sentence(request, error))
        headers.update(error.headers or {})
    else:
        _log.error("%s %s failed: %r", request.method, request.url.path, error, exc_info=error)
        status, body = (
            500,
            _plain(Code.INTERNAL, f"This is a bug of ours ({error!r}); please report it with the logs."),
        )
    return Response(json.dumps({"error": body}), status, headers, "application/json")


def _plain(code: Code, message: str) -> dict[str, Any]:
    return {"code": code.name, "message": message, "model": "", "retry_after_s": None}


def _sentence(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"There is nothing at {request.url.path}; /docs lists what is."
    if error.status_code == 405:
        return f"{request.method} is not offered at {request.url.path}; /docs lists what is."
    return error.detail or HTTPStatus(error.status_code).phrase
