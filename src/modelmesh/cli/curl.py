"""The line `serve` prints for people to paste: a request the first model can answer, made from its own metadata."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import ssl

_ELEMENTS_MAX: Final = 64
_TIMEOUT_S: Final = 30.0


class Door(NamedTuple):
    """The REST port as a client sees it."""

    url: str
    certificate: str | None = None
    """The file of its own certificate; None: plain text."""
    asks_certificate: bool = False
    """Clients have to show one."""


async def curl_line(door: Door, names: Iterable[str]) -> str:
    """A `curl` command for the first of these models that works, and one that always does when none does. Asks the REST port for
    metadata, which may load a model. A model that does not say what it takes is asked for its metadata instead."""
    if door.asks_certificate:
        # We have none to show, so what models take cannot be asked.
        return f"curl --cacert {shlex.quote(door.certificate or '')} --cert CLIENT.pem --key CLIENT-KEY.pem {door.url}/v2"
    options = await _options(door)
    for name in names:
        path = f"/v2/models/{quote(name, safe='')}"
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                metadata = await _get_json(door, path)
        except (OSError, EOFError, ValueError, TimeoutError):
            continue  # it is broken, or too large; explain tells
        body = example_request(metadata)
        if body is None:
            return f"curl {options}{door.url}{path}"
        return (
            f"curl {options}{door.url}{path}/infer -d {shlex.quote(json.dumps(body, separators=(',', ':')))}"
        )
    return f"curl {options}{door.url}/v2"


async def _options(door: Door) -> str:
    """What curl needs to trust the certificate: itself as an authority, where it is for this address; else to trust anything."""
    if door.certificate is None:
        return ""
    address = urlsplit(door.url)
    context = _context(door, verified=True)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address.hostname, address.port, ssl=context)
    except (OSError, TimeoutError):  # ssl.SSLError is one
        return "-k "
    writer.close()
    return f"--cacert {shlex.quote(door.certificate)} "


def _context(door: Door, *, verified: bool) -> ssl.SSLContext | None:
    """None: plain text. It is our own port: who does not trust its certificate can still ask it."""
    if door.certificate is None:
        return None
    import ssl

    context = ssl.create_default_context(cafile=door.certificate)
    if verified:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as curl does
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _get_json(door: Door, path: str) -> dict[str, Any]:
    """A GET that ends at once when it is cancelled, so that it never delays a stop; an HTTP client in a thread would. Raises
    OSError, EOFError, or ValueError when the answer is no success or no JSON object."""
    address = urlsplit(door.url)
    context = _context(door, verified=False)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, ssl=context)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read()
    finally:
        writer.close()
    status = head.split(b" ", 2)[1]
    answer = json.loads(body) if status == b"200" else None
    if not isinstance(answer, dict):
        raise ValueError(f"{path} answered {status.decode()}.")
    return answer


def example_request(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """A request of zeros, one row, that fits the metadata; None when it would be long or the inputs are unknown."""
    inputs = [_example_input(each) for each in metadata.get("inputs", ())]
    elements = sum(math.prod(each["shape"]) for each in inputs)
    return {"inputs": inputs} if inputs and elements <= _ELEMENTS_MAX else None


def _example_input(tensor: dict[str, Any]) -> dict[str, Any]:
    """What the metadata leaves open (−1 in a shape, an empty name or datatype: any) is chosen."""
    shape = [max(1, size) for size in tensor.get("shape") or [1, 1]]
    datatype = tensor.get("datatype") or "FP64"
    value: object = {"BYTES": "", "BOOL": False}.get(datatype, 0)
    return {
        "name": tensor.get("name") or "input",
        "shape": shape,
        "datatype": datatype,
        "data": [value] * math.prod(shape),
    }
