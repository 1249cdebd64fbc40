"""Which format a folder or file of a model is: by names alone, cheap enough for a scan of 100,000 folders, and by first bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from modelmesh.worker.artefact import HEAD_BYTES
from modelmesh.worker.formats.protocol import Claim
from modelmesh.worker.formats.table import format_named, formats, recognise


def guess(files: Sequence[str]) -> str | None:
    """The model type of files with these relative names; None when no format claims them.

    Where names serve two formats the content decides at load, so either answer is right."""
    claims = {name: format.claims(files) for name, format in formats().items()}
    best = max(claims, key=lambda name: claims[name], default=None)
    return None if best is None or claims[best] is Claim.NO else best


def why_no_model(model_type: str, path: str, files: Sequence[str]) -> str:
    """Why what lies at `path`, a folder with these files or the one file of this name, is no model of a type that `guess` gave.
    Empty when a load is worth trying: the first bytes of the file that would be loaded are those of its format, or of another
    that uses the same file names, as when it is loaded. Raises OSError when it cannot be read."""
    format = format_named(model_type)
    name = format.pick(files)
    if name is None:
        return f"no single {format.name} model among its files"
    head = _head(path, name)
    inside = "it" if path.endswith(f"/{name}") else name
    if not head:
        return f"{inside} is empty"
    found, seems = recognise(format, name, head)
    return "" if found is not None else f"{inside} does not begin like a model of type {format.name}{seems}"


def _head(path: str, name: str) -> bytes:
    """Bare calls of the system: this is done once for every model of a folder, and a file object costs as much again."""
    try:
        descriptor = os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except NotADirectoryError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, HEAD_BYTES)
    finally:
        os.close(descriptor)
