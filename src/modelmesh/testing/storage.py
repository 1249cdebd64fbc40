"""Storage that fails for a while: what is wrong with artefacts, and what ends with the trouble."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from modelmesh.errors import Code, LoadFailed
from modelmesh.testing.runtime import Artefact

BROKEN: Final = "It is broken."


def bad_artefact() -> LoadFailed:
    """What loading an artefact raises that nobody mends."""
    return LoadFailed(BROKEN, code=Code.INVALID_ARGUMENT)


def turn_storage(artefacts: Mapping[str, Artefact], rng: random.Random) -> None:
    """The storage of one artefact fails from now on, or works again."""
    if not artefacts:
        return
    artefact = artefacts[rng.choice(sorted(artefacts))]
    if artefact.error is None:
        artefact.error = LoadFailed("The storage is away.", code=Code.UNAVAILABLE)
    else:
        _mend(artefact)


def lose_storage(artefacts: Mapping[str, Artefact]) -> None:
    """Nothing that is there now can be found any more, until `find_storage`."""
    for artefact in artefacts.values():
        artefact.estimate_error = LoadFailed("There is nothing there.", code=Code.NOT_FOUND)


def find_storage(artefacts: Mapping[str, Artefact]) -> None:
    """All can be found again."""
    for artefact in artefacts.values():
        artefact.estimate_error = None


def mend_storage(artefacts: Mapping[str, Artefact]) -> None:
    """All storage works again; bad artefacts stay bad."""
    find_storage(artefacts)
    for artefact in artefacts.values():
        _mend(artefact)


def _mend(artefact: Artefact) -> None:
    if artefact.error is not None and artefact.error.args[0] != BROKEN:
        artefact.error = None
