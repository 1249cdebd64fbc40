"""The installed formats by model type, and which of them a given artefact is."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import cast

from modelmesh.errors import Code, LoadFailed
from modelmesh.worker.artefact import Artefact
from modelmesh.worker.formats.protocol import Claim, Format

GROUP = "modelmesh.formats"


@functools.cache
def formats() -> Mapping[str, Format]:
    """All formats by name, from the entry points. Imports no framework."""
    loaded = (cast("Format", point.load()()) for point in entry_points(group=GROUP))
    return MappingProxyType(
        {format.name: format for format in sorted(loaded, key=lambda format: format.name)}
    )


def format_named(model_type: str) -> Format:
    """The format of a model type. Raises LoadFailed naming those there are."""
    known = formats()
    if model_type.lower() not in known:
        raise LoadFailed(
            f"The model type {model_type!r} is not served here; there are {', '.join(known)}.",
            code=Code.FAILED_PRECONDITION,
        )
    return known[model_type.lower()]


def missing_extra(format: Format, error: ImportError) -> LoadFailed:
    """The failure of a model whose framework is not installed."""
    return LoadFailed(
        f'{format.name} models need a library that is not installed ({error}): pip install "pymodelmesh[{format.extra}]".',
        code=Code.FAILED_PRECONDITION,
    )


def identify(model_type: str, artefact: Artefact) -> tuple[Format, str]:
    """The format that loads an artefact, and the file to load.

    It is the one of the model type, unless the first bytes say that the file belongs to another format that uses the
    same file names (`model.bst` is XGBoost's and LightGBM's). Raises LoadFailed INVALID_ARGUMENT when it is neither."""
    declared = format_named(model_type)
    name = declared.pick(artefact.names)
    if name is None:
        raise LoadFailed(
            f"No {declared.name} model was found in {artefact.folder}: it holds {_some(artefact.names)}; "
            f"expected is {' or '.join(declared.well_known)}, or a single file.",
            code=Code.INVALID_ARGUMENT,
        )
    head = artefact.head(name)
    if not head:
        raise LoadFailed(f"{artefact.folder / name} is empty.", code=Code.INVALID_ARGUMENT)
    found, seems = recognise(declared, name, head)
    if found is None:
        raise LoadFailed(
            f"{artefact.folder / name} is not a {declared.name} model{seems}.", code=Code.INVALID_ARGUMENT
        )
    return found, name


def recognise(declared: Format, name: str, head: bytes) -> tuple[Format | None, str]:
    """The format of a file by its first bytes: the declared one, or another that uses the same file names. None when it is
    neither; then also the end of a sentence that tells what it looks like, if anything."""
    if declared.recognises(head):
        return declared, ""
    owners = [format for format in formats().values() if format.recognises(head)]
    for other in owners:
        if other.claims([name]) is not Claim.NO and declared.claims([name]) is not Claim.NO:
            return other, ""
    return None, f"; it looks like {owners[0].name}" if owners else ""


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
