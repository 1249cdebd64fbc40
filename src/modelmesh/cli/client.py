"""Talking to a running instance: its ops API, and its REST port for `infer`. Failures become sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import quote

import httpx

from modelmesh import __version__
from modelmesh.cli.exits import CommandFailed, Exit

_TIMEOUT_S = 10.0
_VERSION_S = 2.0


class Client:
    """One instance, by the URL of its ops port. A context manager. `wait_s` is how long an answer may take; None: forever."""

    def __init__(self, ops: str, transport: httpx.BaseTransport | None = None) -> None:
        self._ops = ops.rstrip("/")
        if not self._ops.startswith(("http://", "https://")):
            raise CommandFailed(
                f'--ops: "{ops}" is not a URL; write it like http://127.0.0.1:8089.', Exit.USAGE
            )
        self._http = httpx.Client(timeout=_TIMEOUT_S, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def get(self, path: str, **query: object) -> Any:
        return self._call("GET", path, query=query)

    def put(self, path: str, body: Mapping[str, object], *, wait_s: float | None = _TIMEOUT_S) -> Any:
        return self._call("PUT", path, body=body, wait_s=wait_s)

    def patch(self, path: str, body: Mapping[str, object]) -> Any:
        return self._call("PATCH", path, body=body)

    def post(self, path: str, *, wait_s: float | None = _TIMEOUT_S, **query: object) -> Any:
        return self._call("POST", path, query=query, wait_s=wait_s)

    def delete(self, path: str, **query: object) -> None:
        self._call("DELETE", path, query=query)

    def pages(
        self, path: str, items: str, limit: int | None, page_size: int = 250, **query: object
    ) -> Iterator[Any]:
        """The items of all pages, at most `limit` of them."""
        after = ""
        while limit is None or limit > 0:
            page = self.get(
                path, after=after, limit=page_size if limit is None else min(limit, page_size), **query
            )
            yield from page[items]
            after = page["next_after"]
            limit = None if limit is None else limit - len(page[items])
            if not after:
                return

    def register_lines(self, lines: bytes) -> list[dict[str, Any]]:
        """Register many (NDJSON); one result per line, in order."""
        headers = {"Content-Type": "application/x-ndjson"}
        response = self._send(
            self._ops, "POST", "/models:batch", content=lines, headers=headers, timeout=60.0
        )
        return [self._decoded(response, line) for line in response.content.splitlines()]

    def rest(
        self, method: str, path: str, *, content: bytes | None = None, wait_s: float | None = None
    ) -> Any:
        """A call of the instance's REST port, whose address the ops API tells."""
        address = self.get("/instance")["addresses"]["rest"]
        if not address:
            raise CommandFailed("This instance has no REST port.", Exit.REFUSED)
        headers = {"Content-Type": "application/json"} if content is not None else None
        return self._send(address, method, path, content=content, headers=headers, timeout=wait_s).json()

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
        wait_s: float | None = _TIMEOUT_S,
    ) -> Any:
        params = {name: str(value) for name, value in (query or {}).items() if value not in (None, "")}
        response = self._send(self._ops, method, path, params=params, json=body, timeout=wait_s)
        return self._decoded(response, response.content) if response.content else None

    def _decoded(self, response: httpx.Response, raw: bytes) -> Any:
        try:
            return json.loads(raw, object_hook=lambda fields: _Told(self._ops, fields))
        except ValueError as error:
            raise CommandFailed(_stranger(response), Exit.REFUSED) from error

    def _send(self, base: str, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            response = self._http.request(method, base + path, **more)
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise CommandFailed(
                    f"The certificate of {base} is not trusted ({error}). Set SSL_CERT_FILE to the file of its authority, or to "
                    "the certificate itself when it signs itself.",
                    Exit.NO_INSTANCE,
                ) from error
            raise CommandFailed(
                f"Nothing listens at {base}. Is an instance running? Start one with: modelmesh serve FOLDER; or say where "
                "its ops port is with --ops or MODELMESH_OPS.",
                Exit.NO_INSTANCE,
            ) from error
        except httpx.TimeoutException as error:
            raise CommandFailed(
                f"{base} did not answer in time; see its logs, or try again with a longer --timeout.",
                Exit.NO_INSTANCE,
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            doubt = "; is that the ops port of a modelmesh instance?" if base == self._ops else "."
            raise CommandFailed(f"{base} could not be asked ({error}){doubt}", Exit.NO_INSTANCE) from error
        if response.status_code == 404 and f"nothing at {response.request.url.path}" in response.text:
            raise CommandFailed(_other_version(base, response.request.url.path), Exit.REFUSED)
        if response.is_error:
            raise CommandFailed(_sentence(response), Exit.REFUSED)
        return response


class _Told(dict[str, Any]):
    """An object of an answer. That a field is missing is told in a sentence: instances of other versions may not have it."""

    def __init__(self, ops: str, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._ops = ops

    def __missing__(self, field: str) -> NoReturn:
        raise CommandFailed(_other_version(self._ops, f'"{field}"'), Exit.REFUSED)


def _other_version(ops: str, what: str) -> str:
    """Why an answer is not what the command expects."""
    try:
        version = httpx.get(f"{ops}/instance", timeout=_VERSION_S).json()["version"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return f"{ops} knows no {what}; is that the ops port of a modelmesh instance, and of version {__version__}?"
    return (
        f"The instance at {ops} knows no {what}, which this command needs: its version is {version}, and that of the command "
        f"{__version__}. Use the command of the instance's version, or upgrade the instance."
    )


def at(collection: str, id: str, verb: str = "") -> str:
    """The path of one model or vmodel; every character of the id is its own, '/' too."""
    return f"/{collection}/{quote(id, safe='')}{verb}"


def _stranger(response: httpx.Response) -> str:
    return f"{response.request.url} answered {response.status_code}; is that the ops port of a modelmesh instance?"


def _sentence(response: httpx.Response) -> str:
    """What the instance said. The ops API answers an object, the REST port of inference a text."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return _stranger(response)
    if isinstance(error, str):
        return error
    sentence = str(error.get("message", error))
    if error.get("code") == "NOT_FOUND" and "modelmesh " not in sentence:
        sentence = f"{sentence.rstrip('.')}. See what there is with: modelmesh list."
    if retry_after_s := error.get("retry_after_s"):
        sentence += f" Try again in {retry_after_s:.3g} s."
    return sentence
