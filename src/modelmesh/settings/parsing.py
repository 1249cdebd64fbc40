"""One small parser per kind of setting: text in, value out, ValueError with the second half of a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from modelmesh.settings.machine import memory_limit_bytes
from modelmesh.settings.sizes import parse_size

_REACHED = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s/,:\[\]]+))(?::(\d+))?|([0-9A-Fa-f:.]+)")
"""[IPv6] or a name, then a port; or a bare IPv6 address."""
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def text(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return value.strip()


def port(value: str) -> int:
    if not value.isdigit() or int(value) > 65535:
        raise ValueError("is not a port: write a number from 0 (any free port) to 65535")
    return int(value)


def optional_port(value: str) -> int | None:
    """None for `none`, in any case: the predecessor writes it in capitals."""
    return None if value.strip().lower() == "none" else port(value)


def count(value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= 1024:
        raise ValueError("is not a number from 1 to 1024")
    return int(value)


def truth(value: str) -> bool:
    if value.strip().lower() not in ("true", "false"):
        raise ValueError("is neither true nor false")
    return value.strip().lower() == "true"


def queue(value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= 100_000:
        raise ValueError("is not a number from 1 to 100000")
    return int(value)


def seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 86_400:
        raise ValueError("is not a number of seconds from 0 to 86400")
    return number


def patience(value: str) -> float:
    number = seconds(value)
    if number < 1:
        raise ValueError("is not a number of seconds from 1 to 86400")
    return number


def optional_seconds(value: str) -> float | None:
    """None for `none`; else from one to those of a year."""
    if value.strip().lower() == "none":
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 1 <= number <= 31_536_000:
        raise ValueError("is neither none nor a number of seconds from 1 to 31536000")
    return number


def told_headers(value: str) -> tuple[tuple[str, str], ...]:
    """A JSON object: headers, in small letters, and the names of fields."""
    try:
        told = json.loads(value)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(told, dict) or not told:
        raise ValueError('is not a JSON object of headers and fields, such as {"x-request-id": "request_id"}')
    for header, name in told.items():
        if not isinstance(name, str) or not name or not _HEADER.fullmatch(header):
            raise ValueError(
                f'has "{header}": {json.dumps(name)}, which is no header with the name of a field'
            )
    return tuple((header.lower(), name) for header, name in told.items())


def message_size(value: str) -> int:
    """Bounded by what gRPC can count."""
    size_bytes = parse_size(value)
    if not 1024 <= size_bytes < 2**31:
        raise ValueError("is not a size from 1KiB to just below 2GiB")
    return size_bytes


def headers_size(value: str) -> int:
    size_bytes = parse_size(value)
    if not 1024 <= size_bytes <= 2**24:
        raise ValueError("is not a size from 1KiB to 16MiB")
    return size_bytes


def memory(value: str) -> int:
    return parse_size(value, whole_bytes=memory_limit_bytes())


def path(value: str) -> Path:
    return Path(text(value)).expanduser().absolute()


def optional_path(value: str) -> Path | None:
    """None for `none`."""
    return None if value.strip() == "none" else path(value)


def advertised(value: str) -> tuple[str, int | None]:
    """A host that others can dial, and a port if one is said."""
    match = _REACHED.fullmatch(value.strip())
    if match is None:
        raise ValueError("is neither HOST nor HOST:PORT (an IPv6 address with a port stands in brackets)")
    host, number = match[1] or match[2] or match[4], match[3]
    if host in ("0.0.0.0", "::"):
        raise ValueError("is no address that others can dial: it stands for all interfaces")
    return host, None if number is None else port_of_others(number)


def port_of_others(value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= 65535:
        raise ValueError("is not a port from 1 to 65535")
    return int(value)


def paths(value: str) -> tuple[Path, ...]:
    """Several, with commas between them."""
    return tuple(path(part) for part in value.split(",") if part.strip())


def secret(value: str) -> str:
    """As it is: spaces may belong to it."""
    return value


def client_auth(value: str) -> str:
    """In any case: the predecessor writes it in capitals."""
    return choice("none", "optional", "require")(value.strip().lower())


def folder(value: str) -> Path:
    """The folder with symbolic links resolved, so that one folder has one name."""
    found = path(value)
    if not found.exists():
        raise ValueError("does not exist")
    if not found.is_dir():
        raise ValueError("is not a folder")
    return found.resolve()


MEMORY = "memory"


def state(value: str) -> Path | str:
    """`MEMORY`: keep nothing."""
    return MEMORY if value.strip() == MEMORY else path(value)


ETCD = "etcd:"


def store(value: str) -> str:
    """What follows `etcd:`: a connection file or endpoints."""
    kind, _, where = value.strip().partition(":")
    if kind == "zookeeper":
        raise ValueError("is a ZooKeeper, which is not supported: move the registry to etcd")
    if kind + ":" != ETCD or not where.strip():
        raise ValueError(
            "is not etcd:FILE with a connection file, or etcd:HOST:PORT with endpoints, several with commas"
        )
    return where.strip()


def key_part(value: str) -> str:
    """A part of a key: no slash, no white space."""
    if not value or "/" in value or any(char.isspace() for char in value):
        raise ValueError("is empty, or contains a slash or white space")
    return value


def choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"is none of {', '.join(allowed)}")
        return value

    return parse
