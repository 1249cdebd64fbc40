"""Names: what an id may look like, and how folder mode composes them.

In folder mode the model found as `iris` is registered as `iris@<fingerprint>`, its version 2 as `iris:2@<fingerprint>`;
the vmodels `iris` and `iris:2` point at them. ':' and '@' are therefore reserved in folder names.
"""

from __future__ import annotations

import re
from typing import Final

from modelmesh.errors import InvalidInput

MAX_ID_BYTES: Final = 1024
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
VERSION: Final = ":"
CONTENT: Final = "@"
RESERVED: Final = VERSION + CONTENT


def check_id(value: str, what: str = "model") -> str:
    """Return `value` when it may be an id: up to 1,024 bytes of UTF-8, no control characters, no blank at either end (headers
    would lose it). Raises InvalidInput with a sentence otherwise."""
    if not value or value.isspace():
        raise InvalidInput(f"A {what} id is needed; it is empty.")
    if value != value.strip():
        raise InvalidInput(f"The {what} id {value!r} begins or ends with a blank.")
    if CONTROL.search(value):
        raise InvalidInput(f"The {what} id {value!r} contains a control character.")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"The {what} id {value!r} is not valid Unicode.") from error
    if size_bytes > MAX_ID_BYTES:
        raise InvalidInput(
            f"The {what} id {value[:40]!r}… has {size_bytes} bytes; at most {MAX_ID_BYTES} are allowed."
        )
    return value


def concrete_id(name: str, fingerprint: str) -> str:
    """The model id of the content `fingerprint` found under `name`."""
    return f"{name}{CONTENT}{fingerprint}"


def name_of(concrete: str) -> str:
    """The name under which a concrete model was found; the id itself when it is no concrete id."""
    return concrete.rpartition(CONTENT)[0] or concrete


def version_name(name: str, version: int | str) -> str:
    """The vmodel id of one version of a model."""
    return f"{name}{VERSION}{version}"


def split_version(name: str) -> tuple[str, str]:
    """(name, version) of a vmodel id; the version is empty when there is none."""
    base, found, version = name.rpartition(VERSION)
    return (base, version) if found and base and version.isdigit() else (name, "")


def follows_versions(vmodel: str, model: str) -> bool:
    """Whether a name without a version points at one version of several in its folder."""
    return bool(split_version(name_of(model))[1]) and not split_version(vmodel)[1]
