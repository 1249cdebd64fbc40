"""What a model format is: how its files are recognised, imported, loaded and asked.

A format's module is imported in the instance process too, for detection and estimates, so it must be cheap: numpy and
the framework are imported inside `import_framework`, `load` and below only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from modelmesh.dataplane.model_server import Array

Parameters: TypeAlias = Mapping[str, bool | int | float | str]


class Claim(IntEnum):
    """How surely a format takes files for its own, by their names alone."""

    NO = 0
    ONLY_ONE = 1
    """A single file with one of its extensions."""
    WELL_KNOWN = 2
    """A file with one of the names the field agreed on."""


class InputSpec(NamedTuple):
    """An input. Empty name: a single input of any name; empty datatype: any; −1 in the shape: any."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class OutputSpec(NamedTuple):
    """An output; `default` ones are computed when a request names none."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    default: bool


@dataclass(frozen=True, slots=True)
class SizeHints:
    """What a model of this format weighs in memory, before one of equal content was measured.

    size = `floor_bytes` + `per_file_byte` × bytes on disk; the load peaks at `peak_factor` × size."""

    floor_bytes: int
    per_file_byte: float
    peak_factor: float


class LoadedModel(Protocol):
    """A model in memory. Called by one thread at a time."""

    platform: str
    """As the metadata names it: `framework_kind`, for instance "sklearn_pipeline"."""
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    row_wise: bool
    """Whether each output row depends on its input row only, so that requests may be stacked."""

    def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], parameters: Parameters
    ) -> Mapping[str, Array]:
        """Results by name, those of `outputs` among them (empty: those returned by default). BYTES come as object arrays
        of bytes and may go back as text. Raises InvalidInput, ValueError or TypeError when the request is to blame."""

    def owned(self) -> object:
        """The framework's object, watched to see that it is gone after an unload."""


class Format(Protocol):
    """A model format, one per entry point of the group `modelmesh.formats`."""

    name: str
    """The model type it serves, as KServe names it."""
    extra: str
    """The extra of the distribution that installs its framework."""
    modules: tuple[str, ...]
    """Modules whose import makes up its base, shared ones first; two formats share the memory of equal names."""
    well_known: tuple[str, ...]
    """File names the field agreed on, preferred in this order."""
    hints: SizeHints

    def claims(self, files: Sequence[str]) -> Claim:
        """How surely files with these names are a model of this format."""

    def pick(self, files: Sequence[str]) -> str | None:
        """The file to load; None when none or no single one qualifies."""

    def recognises(self, head: bytes) -> bool:
        """Whether a file that begins with these bytes can be of this format. Never true for another format's files."""

    def import_framework(self) -> None:
        """Import what loading and inference need. Raises ImportError when the extra is not installed."""

    def load(self, path: Path) -> LoadedModel:
        """Load a file. Raises LoadFailed with a sentence: INVALID_ARGUMENT for what is not a (whole) model of this
        format, FAILED_PRECONDITION for what needs something that is not installed."""
