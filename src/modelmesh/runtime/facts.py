"""What was learned about this machine's libraries and models, kept in a small JSON file between runs."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from modelmesh.worker.formats.protocol import Format

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
IDLE_BASE_BYTES: Final = 32 * MIB
MODULE_BASE_BYTES: Final[Mapping[str, int]] = {
    "sklearn": 96 * MIB,
    "xgboost": 12 * MIB,
    "lightgbm": 12 * MIB,
    "onnxruntime": 22 * MIB,
}
"""What importing a module adds to a worker, which has numpy already; measured with scikit-learn 1.9, xgboost 3.2,
lightgbm 4.7, onnxruntime 1.32."""
UNKNOWN_MODULE_BYTES: Final = 64 * MIB
BASES_MAX: Final = 256
DISTRIBUTIONS: Final[Mapping[str, Sequence[str]]] = {
    "sklearn": ("scikit-learn",),
    "xgboost": ("xgboost", "xgboost-cpu"),
}


class Facts:
    """Learned numbers. A missing or broken file is an empty one; a file that cannot be written is no error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._bases: dict[str, int] = {}
        self.largest_model_bytes = 0
        self._read()

    def base_bytes(self, format: Format, imported: Sequence[Format]) -> int:
        """What a worker that has imported these formats grows by when it imports one more; 0 when it has it."""
        if format in imported:
            return 0
        known = self._bases.get(_key(format, imported))
        if known is not None:
            return known
        present = {module for other in imported for module in other.modules}
        return sum(
            MODULE_BASE_BYTES.get(module, UNKNOWN_MODULE_BYTES)
            for module in format.modules
            if module not in present
        )

    def idle_base_bytes(self) -> int:
        """What a worker weighs that has imported nothing."""
        return self._bases.get("", IDLE_BASE_BYTES)

    def learn_base(self, format: Format, imported: Sequence[Format], base_bytes: int) -> None:
        self._learn(_key(format, imported), base_bytes)

    def learn_idle_base(self, base_bytes: int) -> None:
        self._learn("", base_bytes)

    def _learn(self, key: str, base_bytes: int) -> None:
        self._bases.pop(key, None)
        self._bases[key] = base_bytes
        while len(self._bases) > BASES_MAX:
            self._bases.pop(next(iter(self._bases)))

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path is None:
            return
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(
                json.dumps({"bases": self._bases, "largest_model_bytes": self.largest_model_bytes})
            )
            draft.replace(self._path)
        except OSError as error:
            log.warning("What was learned about memory cannot be saved to %s: %s", self._path, error)
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def _read(self) -> None:
        if self._path is None or not self._path.exists():
            return
        try:
            kept = json.loads(self._path.read_text())
            self._bases = {str(key): int(value) for key, value in kept["bases"].items()}
            self.largest_model_bytes = int(kept["largest_model_bytes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is not readable and is started anew: %s", self._path, error)


def _key(format: Format, imported: Sequence[Format]) -> str:
    """A base depends on the libraries' versions and on what the process has already."""
    before = "+".join(sorted(_versioned(other) for other in imported))
    return f"{_versioned(format)} after {before}" if before else _versioned(format)


def _versioned(format: Format) -> str:
    return ",".join(f"{module}={_version(module)}" for module in format.modules)


@functools.cache
def _version(module: str) -> str:
    for distribution in DISTRIBUTIONS.get(module, (module,)):
        with contextlib.suppress(PackageNotFoundError):
            return version(distribution)
    return "?"
