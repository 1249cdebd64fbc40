"""What models weigh: learned by their content, else predicted from their files and their format's experience."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from modelmesh.runtime.examined import Examined
from modelmesh.worker.formats.protocol import Format

Value = TypeVar("Value")

CONTENTS_MAX: Final = 100_000
FACTOR_MIN: Final = 0.5
FACTOR_MAX: Final = 8.0
FACTOR_MEMORY: Final = 0.98
"""How much of the experience with a format is kept when a model is added to it."""
PEAK_BYTES_MIN: Final = 1 << 20
"""What any load may use for itself beside the model, whatever its size."""
MEASURED_TIMES: Final = 3
"""Measurements after which a content's weight is known: a load that fills holes in the heap measures small."""


@dataclass(frozen=True, slots=True)
class Weight:
    """What one content weighs, as measured."""

    size_bytes: int
    peak_bytes: int
    load_s: float
    file_bytes: int = 0
    """Of the size: what is mapped from files."""
    times: int = 1
    """How often it was measured."""


class Sizes:
    """Measured weights by content, the contents of known files, and a correction per format. Bounded, oldest out first."""

    def __init__(self) -> None:
        self._weights: OrderedDict[str, Weight] = OrderedDict()
        self._contents: OrderedDict[str, str] = OrderedDict()
        self._experience: dict[str, tuple[float, float]] = {}
        """Per format: bytes measured and bytes guessed, older ones fading."""

    def content_of(self, examined: Examined) -> str:
        """The content hash of files that were loaded before, unchanged; empty when unknown."""
        return self._contents.get(examined.fingerprint, "")

    def measured(self, content: str) -> Weight | None:
        """What a model of this content weighed; None when none was measured."""
        return self._weights.get(content)

    def settled(self, format: Format, content: str) -> Weight | None:
        """A weight that need not be measured again: measured `MEASURED_TIMES`, all in the heap, with a load peak such as its
        format's loads have. None while there is none."""
        weight = self._weights.get(content)
        if weight is None or weight.file_bytes > 0 or weight.times < MEASURED_TIMES:
            return None
        return weight if weight.peak_bytes <= _usual_peak_bytes(format, weight.size_bytes) else None

    def predicted(self, format: Format, file_bytes: int) -> Weight:
        """A guess from the size on disk."""
        measured_bytes, guessed_bytes = self._experience.get(format.name, (1.0, 1.0))
        factor = min(max(measured_bytes / guessed_bytes, FACTOR_MIN), FACTOR_MAX)
        size_bytes = int(_guess(format, file_bytes) * factor)
        return Weight(size_bytes, _usual_peak_bytes(format, size_bytes), 0.0)

    def learn(self, examined: Examined, content: str, weight: Weight, *, measured: bool) -> None:
        """Remember a finished load; only measured sizes are believed later."""
        _keep(self._contents, examined.fingerprint, content)
        if not measured:
            return
        self.settle(content, weight)
        format = examined.format
        measured_bytes, guessed_bytes = self._experience.get(format.name, (0.0, 0.0))
        self._experience[format.name] = (
            FACTOR_MEMORY * measured_bytes + weight.size_bytes,
            FACTOR_MEMORY * guessed_bytes + _guess(format, examined.size_bytes),
        )

    def settle(self, content: str, weight: Weight) -> None:
        """Remember what a content weighs; of sizes and peaks the highest, for a load may have found holes or free pages
        to use."""
        before = self._weights.get(content)
        if before is not None:
            weight = replace(
                weight,
                size_bytes=max(weight.size_bytes, before.size_bytes),
                peak_bytes=max(weight.peak_bytes, before.peak_bytes),
                times=before.times + 1,
            )
        _keep(self._weights, content, weight)


def _usual_peak_bytes(format: Format, size_bytes: int) -> int:
    return max(int(size_bytes * format.hints.peak_factor), size_bytes + PEAK_BYTES_MIN)


def _guess(format: Format, file_bytes: int) -> float:
    return format.hints.floor_bytes + format.hints.per_file_byte * file_bytes


def _keep(table: OrderedDict[str, Value], key: str, value: Value) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > CONTENTS_MAX:
        table.popitem(last=False)
