"""Names of entries in a folder of models: which can be a model's, which are unfinished, which are versions."""

from __future__ import annotations

import re
from typing import Final

from modelmesh.errors import InvalidInput
from modelmesh.registry.ids import RESERVED, check_id

UNFINISHED: Final = (
    ".part",
    ".partial",
    ".tmp",
    ".temp",
    ".crdownload",
    ".download",
    ".filepart",
    ".swp",
    "~",
)
"""Endings that copying tools and editors give to names of what they have not finished."""
RSYNC: Final = re.compile(r"\..+\..+\.[A-Za-z0-9]{6}", re.DOTALL)
"""The names rsync writes under: `.model.onnx.Xy12aB`."""
NO_MODELS: Final = frozenset({"lost+found", "__pycache__"})


class Skip(Exception):
    """An entry is no model, for the reason given."""


def check_name(name: str) -> None:
    """Raises Skip when an entry's name cannot be a model's."""
    if name[0] == ".":
        raise Skip("it is hidden")
    if name in NO_MODELS:
        raise Skip("it is no model's name")
    if is_half_written(name):
        raise Skip("it is half-written, by its name")
    if any(character in name for character in RESERVED):
        raise Skip("':' and '@' are reserved in names: rename it")
    try:
        check_id(name)
    except InvalidInput as error:
        raise Skip(f"its name cannot be a model's: {error}") from error


def is_half_written(name: str) -> bool:
    return (
        name.endswith(UNFINISHED) or name[0] == "~" or (name[0] == "." and RSYNC.fullmatch(name) is not None)
    )


def is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and (name == "0" or name[0] != "0")


def stem(entry: str) -> str:
    """The name of the model that a file of this name is."""
    stem, dot, _ = entry.rpartition(".")
    return stem if dot and stem else entry


def shown(text: str) -> str:
    """Text that can be printed and stored, whatever the names of files in it."""
    return text.encode(errors="backslashreplace").decode()


def some(names: list[str]) -> str:
    """A few of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
