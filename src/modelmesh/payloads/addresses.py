"""Payload processors as a user writes them: URIs with filters in their query and fragment (reference mesh.md 10.1)."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from modelmesh.dataplane.protocol import Payload

_log = logging.getLogger("modelmesh.payloads")

_ANY: Final = ("", "/", "*", "/*")


class Address(NamedTuple):
    """One processor. Empty filters want all."""

    scheme: str
    """`http`, `https` or `logger`."""
    url: str
    """Where to send to, without the fragment; empty for `logger`."""
    model: str
    """The id of a model or vmodel."""
    method: str
    """A full method name, "pkg.Service/Method"."""

    def wants(self, payload: Payload) -> bool:
        return self.model in ("", payload.model, payload.vmodel) and self.method in ("", payload.method)


def parse_addresses(text: str) -> list[Address]:
    """Those in a text with spaces between them. What is no such URI is passed over with a warning, as the predecessor does."""
    return [address for uri in text.split() if (address := _parse(uri)) is not None]


def _parse(uri: str) -> Address | None:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        _log.warning("The payload processor %s is passed over: %s.", uri, error)
        return None
    # The predecessor writes ids with a slash in front here, and takes the first one out.
    model, method = unquote(parts.query), unquote(parts.fragment).removeprefix("/")
    model = "" if model in _ANY else model.replace("/", "", 1)
    method = "" if method in _ANY else method
    if parts.scheme == "logger":
        return Address("logger", "", model, method)
    if parts.scheme not in ("http", "https"):
        _log.warning(
            "The payload processor %s is passed over: known schemes are http, https and logger.", uri
        )
        return None
    if not host:
        _log.warning("The payload processor %s is passed over: it names no host.", uri)
        return None
    return Address(parts.scheme, parts._replace(fragment="").geturl(), model, method)
