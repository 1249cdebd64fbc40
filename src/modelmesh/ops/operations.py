"""The list of what the admin API offers: routes and the OpenAPI document are both made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from modelmesh.errors import InvalidInput
from modelmesh.ops import schemas


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter. `kind` is a JSON type."""

    name: str
    kind: str
    default: Any
    says: str

    def read(self, request: Request) -> Any:
        """The value given, or the default. Raises InvalidInput."""
        raw = request.query_params.get(self.name)
        if raw is None:
            return self.default
        try:
            if self.kind == "boolean":
                return {"true": True, "1": True, "false": False, "0": False}[raw.lower()]
            return {"integer": int, "number": float, "string": str}[self.kind](raw)
        except (KeyError, ValueError) as error:
            raise InvalidInput(f'{self.name}: "{raw}" is not of type {self.kind}.') from error


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `path` holds `{id}` where the id of a model, vmodel or instance stands, '/' included."""

    method: str
    path: str
    says: str
    handler: Callable[[Request], Awaitable[Response]]
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    parameters: tuple[Parameter, ...] = ()
    answers_also: str = ""
    """A second media type of the answer, with the same items as lines or events."""


AFTER: Final = Parameter("after", "string", "", "Start after this id; `next_after` of the page before.")
PREFIX: Final = Parameter("prefix", "string", "", "Only ids that start so.")
LIMIT: Final = Parameter("limit", "integer", 100, "Items per page, 1 to 250.")
STATE: Final = Parameter(
    "state", "string", "", "Only models in this state: cold, queued, loading, loaded, unloading or failed."
)
INSTANCE: Final = Parameter(
    "instance", "string", "", "Only models that this instance holds or failed to load, by their states there."
)
SORT: Final = Parameter(
    "sort",
    "string",
    "id",
    "id; or, the highest first, rate, size, used (the last use) or copies: these leave out cold models, and what changes "
    "while pages are read may be on two of them or on none.",
)
OWNER: Final = Parameter("owner", "string", "", "Only if this is the owner.")
TIMEOUT: Final = Parameter("timeout_s", "number", 120.0, "How long to wait, in seconds.")
SINCE: Final = Parameter("since", "integer", 0, "Only entries after this sequence number.")
MODEL: Final = Parameter("model", "string", "", "Only entries about this model.")
FOLLOW: Final = Parameter(
    "follow",
    "boolean",
    False,
    "Keep the answer open and send entries as they come: text/event-stream or, if accepted, application/x-ndjson.",
)


K = TypeVar("K", bound=StrEnum)


def one_of(kind: type[K], parameter: Parameter, request: Request) -> K | None:
    """The value of a parameter that is one of several words; None for an empty one. Raises InvalidInput."""
    raw = parameter.read(request)
    try:
        return kind(raw) if raw else None
    except ValueError as error:
        raise InvalidInput(f'{parameter.name}: "{raw}" is none of {", ".join(kind)}.') from error


def openapi(operations: tuple[Operation, ...], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.0)."""
    components: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        success: dict[str, Any] = {"description": "Done."}
        if operation.answer:
            success["content"] = {"application/json": {"schema": _reference(operation.answer, components)}}
            if operation.answers_also:
                success["content"][operation.answers_also] = {"schema": {"type": "string"}}
        described: dict[str, Any] = {
            "summary": operation.says,
            "operationId": operation.handler.__name__,
            "parameters": [_id_parameter()] if "{id}" in operation.path else [],
            "responses": {
                "200" if operation.answer else "204": success,
                "default": {
                    "description": "An error.",
                    "content": {"application/json": {"schema": _reference(schemas.Error, components)}},
                },
            },
        }
        described["parameters"] += [
            {
                "name": each.name,
                "in": "query",
                "description": each.says,
                "schema": {"type": each.kind, "default": each.default},
            }
            for each in operation.parameters
        ]
        if operation.body:
            described["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": _reference(operation.body, components)}},
            }
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "ModelMesh admin API", "version": version},
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items()))},
    }


def _reference(kind: type[BaseModel], components: dict[str, Any]) -> dict[str, str]:
    schema = schemas.described(kind)
    components |= schema.pop("$defs", {})
    components[kind.__name__] = schema
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _id_parameter() -> dict[str, Any]:
    return {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "May contain '/'.",
        "schema": {"type": "string"},
    }
