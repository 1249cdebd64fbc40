"""What a key may be: any text that UTF-8 can carry."""

from __future__ import annotations

from collections.abc import Iterable

from modelmesh.errors import InvalidInput


def check_keys(keys: Iterable[str]) -> None:
    """Raises InvalidInput for a key that cannot be encoded (a lone surrogate, as undecodable file names have)."""
    for key in keys:
        if not key.isascii():
            try:
                key.encode()
            except UnicodeEncodeError as error:
                raise InvalidInput(f"The key {key!r} is not valid Unicode.") from error
