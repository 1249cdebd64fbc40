"""Bulk registration. A JSON array is answered as a whole; lines of JSON are taken in groups while they arrive and
answered by one line each once all have been read (a client that writes first and reads later must not deadlock)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from modelmesh.errors import InvalidInput, ModelMeshError
from modelmesh.mesh.control import Registration
from modelmesh.ops import schemas
from modelmesh.ops.bodies import parse, read_lines, read_list
from modelmesh.ops.model_types import ModelTypes
from modelmesh.ops.parts import Parts
from modelmesh.ops.problems import problem

_GROUP: Final = 500
"""Registrations handled between two looks at the event loop: a few milliseconds of work, and one transaction of the registry."""


async def register_batch(request: Request, parts: Parts) -> Response:
    """Answers in kind. Registrations before a malformed or oversized part have been made; repeating them is harmless."""
    if "ndjson" in request.headers.get("content-type", ""):
        return await _register_lines(request, parts)
    items = await read_list(request, schemas.BatchItem)
    results: list[dict[str, object]] = []
    for start in range(0, len(items), _GROUP):
        group: list[schemas.BatchItem | ModelMeshError] = [*items[start : start + _GROUP]]
        results += map(_result, group, await _register(group, parts))
    failed = sum(result["error"] is not None for result in results)
    answer = {"results": results, "registered": len(results) - failed, "failed": failed}
    return Response(json.dumps(answer), media_type="application/json")


async def _register_lines(request: Request, parts: Parts) -> Response:
    answer = bytearray()
    group: list[schemas.BatchItem | ModelMeshError] = []
    n_lines = 0
    async for line in read_lines(request):
        n_lines += 1
        group.append(_parse_line(line, n_lines))
        if len(group) == _GROUP:
            answer += await _answer_group(group, parts)
            group.clear()
    answer += await _answer_group(group, parts)
    return Response(bytes(answer), media_type="application/x-ndjson")


def _parse_line(line: bytes, number: int) -> schemas.BatchItem | ModelMeshError:
    try:
        return parse(schemas.BatchItem, line)
    except InvalidInput as error:
        return InvalidInput(f"Line {number}: {error}")


async def _answer_group(group: Sequence[schemas.BatchItem | ModelMeshError], parts: Parts) -> bytes:
    outcomes = await _register(group, parts)
    return b"".join(
        json.dumps(_result(item, outcome)).encode() + b"\n"
        for item, outcome in zip(group, outcomes, strict=True)
    )


async def _register(
    group: Sequence[schemas.BatchItem | ModelMeshError], parts: Parts
) -> list[ModelMeshError | None]:
    """One outcome per item; what is an error already stays one."""
    types = ModelTypes(parts.control)
    admitted = await asyncio.to_thread(_admit_all, group, types, parts)
    accepted = [item for item in admitted if isinstance(item, Registration)]
    outcomes = iter(await parts.control.register_many(accepted) if accepted else ())
    return [next(outcomes) if isinstance(item, Registration) else item for item in admitted]


def _admit_all(
    group: Sequence[schemas.BatchItem | ModelMeshError], types: ModelTypes, parts: Parts
) -> list[Registration | ModelMeshError]:
    admitted: list[Registration | ModelMeshError] = []
    for item in group:
        if isinstance(item, ModelMeshError):
            admitted.append(item)
            continue
        try:
            if not item.force:
                types.check(item.id, item.type)
            admitted.append(parts.admit(item.registration()))
        except ModelMeshError as error:
            admitted.append(error)
    return admitted


def _result(item: schemas.BatchItem | ModelMeshError, outcome: ModelMeshError | None) -> dict[str, object]:
    return {
        "id": "" if isinstance(item, ModelMeshError) else item.id,
        "error": problem(outcome) if outcome else None,
    }
