"""Choosing a file by its name: shared by all formats, so that they agree on what does not count as a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from modelmesh.worker.formats.protocol import Claim

NOT_MODELS = frozenset(
    {".md", ".rst", ".yaml", ".yml", ".toml", ".csv", ".html", ".log", ".py", ".ipynb", ".pbtxt"}
)
SETTINGS = frozenset(
    {"model-settings.json", "settings.json", "metadata.json", "config.json", "license", "requirements.txt"}
)
"""Files that lie beside models without being one."""


def candidates(files: Sequence[str]) -> list[str]:
    """The files that may be a model: top-level, not hidden, neither settings nor documentation."""
    return [
        name
        for name in files
        if "/" not in name
        and not name.startswith(".")
        and name.lower() not in SETTINGS
        and PurePosixPath(name).suffix.lower() not in NOT_MODELS
    ]


def claim(files: Sequence[str], well_known: Sequence[str], extensions: Sequence[str]) -> Claim:
    """The claim of a format with these names and extensions (with the dot) on files."""
    if any(name in files for name in well_known):
        return Claim.WELL_KNOWN
    fitting = [name for name in candidates(files) if name.lower().endswith(tuple(extensions))]
    return Claim.ONLY_ONE if len(fitting) == 1 else Claim.NO


def pick(files: Sequence[str], well_known: Sequence[str], extensions: Sequence[str]) -> str | None:
    """The file to load: the first well-known name, else the only one with a fitting extension, else the only one."""
    for name in well_known:
        if name in files:
            return name
    found = candidates(files)
    fitting = [name for name in found if name.lower().endswith(tuple(extensions))]
    if len(fitting) == 1:
        return fitting[0]
    return found[0] if len(found) == 1 and not fitting else None
