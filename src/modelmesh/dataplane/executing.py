"""Which models a model server executes, read from the file it keeps: it outlives the process.

The native model server writes it (`rust/model-server/src/executing.rs` describes the format); its supervisor reads it after a
crash to learn what ran.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

RECORD_BYTES: Final = 1024
"""The size of a record: a little-endian length of four bytes (0: nothing runs) and the id, cut to what fits."""


def executing_models(path: Path) -> list[str]:
    """The ids of the models whose batches ran when the file was last written, each once; empty when none did or there is no
    file. An id longer than a record holds is cut."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    ids = []
    for start in range(0, len(content), RECORD_BYTES):
        record = content[start : start + RECORD_BYTES]
        length = int.from_bytes(record[:4], "little")
        if length:
            ids.append(record[4 : 4 + length].decode(errors="replace"))
    return list(dict.fromkeys(ids))
