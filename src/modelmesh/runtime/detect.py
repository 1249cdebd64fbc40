"""Which format a folder or file of a model is, by names alone: cheap enough for a scan of 100,000 folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelmesh.worker.formats.protocol import Claim
from modelmesh.worker.formats.table import formats


def guess(files: Sequence[str]) -> str | None:
    """The model type of files with these relative names; None when no format claims them.

    Where names serve two formats the content decides at load, so either answer is right."""
    claims = {name: format.claims(files) for name, format in formats().items()}
    best = max(claims, key=lambda name: claims[name], default=None)
    return None if best is None or claims[best] is Claim.NO else best


def well_known_names() -> Mapping[str, Sequence[str]]:
    """The file names each model type is recognised by, preferred ones first."""
    return {name: format.well_known for name, format in formats().items()}
