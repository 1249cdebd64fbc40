"""Which labels a runtime needs to serve a model type, in the predecessor's JSON (reference mesh.md 5.3):

{"tensorflow": {"required": ["gpu"], "preferred": ["fast"]}, "_default": {"preferred": ["spot"]}}
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelmesh.errors import SettingsError
from modelmesh.instance.watched_files import WatchedFiles
from modelmesh.journal import Journal
from modelmesh.policy.runtimes import Constraint
from modelmesh.settings.tree import Runtimes


class TypeConstraints:
    """Those of the settings. `table` is what counts now; a watched file and the store change it in place."""

    def __init__(self, runtimes: Runtimes) -> None:
        inline, path = runtimes.type_constraints, runtimes.type_constraints_path
        if inline is not None and path is not None:
            raise SettingsError(
                "type_constraints and type_constraints_path are both given; which one is meant is not clear, so give only one."
            )
        self._path = path
        self.started = inline or (f"those of {path}" if path is not None else "")
        """In words."""
        self.table: dict[str, Constraint] = {}
        self._own: dict[str, Constraint] = {}
        self._stored: dict[str, Constraint] | None = None
        if inline is not None:
            self._have(parse_constraints(inline, "type_constraints"))
        elif path is not None:
            self._read(path)()

    def store_says(self, stored: dict[str, Constraint] | None) -> None:
        """Those of the store count instead, until it says nothing (None) any more."""
        self._stored = stored
        self._have(self._own)

    def watched(self, journal: Journal) -> list[WatchedFiles]:
        """The file, for the caller to watch; nothing where there is none."""
        if self._path is None:
            return []
        return [
            WatchedFiles([self._path], self._read(self._path), journal, f"The type constraints {self._path}")
        ]

    def _read(self, path: Path) -> Callable[[], None]:
        def use() -> None:
            try:
                text = path.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"type_constraints_path: {path} cannot be read: {error}.") from error
            self._have(parse_constraints(text, str(path)))

        return use

    def _have(self, own: dict[str, Constraint]) -> None:
        """Change the table, which others hold, in place."""
        counts = own if self._stored is None else self._stored
        self._own = own
        self.table.clear()
        self.table.update(counts)


def parse_constraints(text: str, source: str) -> dict[str, Constraint]:
    """By model type. Raises SettingsError with a sentence that names the source."""
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{source} is not JSON: {error}.") from error
    if not isinstance(entries, dict):
        raise SettingsError(f"{source} is not an object of model types.")
    return {type: _constraint(entry, f'{source}, type "{type}"') for type, entry in entries.items()}


def _constraint(entry: Any, source: str) -> Constraint:
    if not isinstance(entry, dict) or not entry.keys() <= {"required", "preferred"}:
        raise SettingsError(f'{source} is not an object of "required" and "preferred" labels.')
    return Constraint(_labels(entry, "required", source), _labels(entry, "preferred", source))


def _labels(entry: dict[str, Any], name: str, source: str) -> frozenset[str]:
    labels = entry.get(name) or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise SettingsError(f'{source}: "{name}" is not a list of labels.')
    return frozenset(labels)
