"""What models weigh: learned by their content, else predicted from their files and their format's experience."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeVar

from modelmesh.worker.artefact import Artefact
from modelmesh.worker.formats.protocol import Format

Value = TypeVar("Value")

CONTENTS_MAX: Final = 100_000
FACTOR_MAX: Final = 16.0
FACTOR_DECAY: Final = 0.05
"""The experience factor of a format rises at once and falls by this share per model: too small costs evictions later,
too large only room."""


@dataclass(frozen=True, slots=True)
class Weight:
    """What one content weighs, as measured."""

    size_bytes: int
    peak_bytes: int
    load_s: float


class Sizes:
    """Measured weights by content, the contents of known files, and a correction per format. Bounded, oldest out first."""

    def __init__(self) -> None:
        self._weights: OrderedDict[str, Weight] = OrderedDict()
        self._contents: OrderedDict[str, str] = OrderedDict()
        self._factors: dict[str, float] = {}

    def content_of(self, artefact: Artefact) -> str:
        """The content hash of files that were loaded before, unchanged; empty when unknown."""
        return self._contents.get(artefact.fingerprint(), "")

    def measured(self, content: str) -> Weight | None:
        """What a model of this content weighed; None when none was measured."""
        return self._weights.get(content)

    def predicted(self, format: Format, file_bytes: int) -> Weight:
        """A guess from the size on disk."""
        hints = format.hints
        size_bytes = int(
            (hints.floor_bytes + hints.per_file_byte * file_bytes) * self._factors.get(format.name, 1.0)
        )
        return Weight(size_bytes, int(size_bytes * hints.peak_factor), 0.0)

    def learn(
        self, format: Format, artefact: Artefact, content: str, weight: Weight, *, measured: bool
    ) -> None:
        """Remember a finished load; only measured sizes are believed later."""
        _keep(self._contents, artefact.fingerprint(), content)
        if not measured:
            return
        self.settle(content, weight)
        hints = format.hints
        guess_bytes = hints.floor_bytes + hints.per_file_byte * artefact.size_bytes
        ratio = min(weight.size_bytes / guess_bytes, FACTOR_MAX)
        factor = self._factors.get(format.name, ratio)
        self._factors[format.name] = max(ratio, factor + FACTOR_DECAY * (ratio - factor))

    def settle(self, content: str, weight: Weight) -> None:
        """Remember what a content weighs; of peaks the highest, for later ones may have found free pages to use."""
        before = self._weights.get(content)
        if before is not None:
            weight = Weight(weight.size_bytes, max(weight.peak_bytes, before.peak_bytes), weight.load_s)
        _keep(self._weights, content, weight)


def _keep(table: OrderedDict[str, Value], key: str, value: Value) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > CONTENTS_MAX:
        table.popitem(last=False)
