"""Reading request bodies within bounds: one JSON object, or many as lines (NDJSON) that never are in memory at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request

from modelmesh.errors import InvalidInput, PayloadTooLarge

BODY_BYTES_MAX: Final = 1 << 20
LINE_BYTES_MAX: Final = 64 << 10
STREAM_BYTES_MAX: Final = 64 << 20
STREAM_LINES_MAX: Final = 100_000

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")


async def read_body(request: Request, kind: type[B]) -> B:
    """The body as `kind`; an empty body is an empty object. Raises InvalidInput, PayloadTooLarge."""
    return parse(kind, await _read(request) or b"{}")


async def read_list(request: Request, kind: type[B]) -> list[B]:
    """The body as a JSON array of `kind`."""
    return _validated(TypeAdapter(list[kind]), await _read(request))  # type: ignore[valid-type]


def parse(kind: type[B], raw: bytes) -> B:
    """Raises InvalidInput with a sentence that names the first wrong field."""
    return _validated(TypeAdapter(kind), raw)


async def read_lines(request: Request) -> AsyncIterator[bytes]:
    """The lines of the body as they arrive, without empty ones. Raises PayloadTooLarge beyond the bounds."""
    rest, total_bytes, n_lines = b"", 0, 0
    async for chunk in request.stream():
        total_bytes += len(chunk)
        if total_bytes > STREAM_BYTES_MAX:
            raise PayloadTooLarge(f"The body is larger than {STREAM_BYTES_MAX >> 20} MiB; send it in parts.")
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise PayloadTooLarge(
                f"Line {n_lines + len(lines) + 1} is longer than {LINE_BYTES_MAX >> 10} KiB."
            )
        for line in lines:
            if line.strip():
                n_lines += 1
                if n_lines > STREAM_LINES_MAX:
                    raise PayloadTooLarge(
                        f"The body has more than {STREAM_LINES_MAX} lines; send it in parts."
                    )
                yield line
    if rest.strip():
        yield rest


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise PayloadTooLarge(f"The body is larger than {BODY_BYTES_MAX >> 20} MiB.")
    return bytes(body)


def _validated(adapter: TypeAdapter[T], raw: bytes) -> T:
    try:
        return adapter.validate_json(raw)
    except ValidationError as error:
        raise InvalidInput(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field}: {first['msg']}." if field else f"The body is not what is expected: {first['msg']}."
