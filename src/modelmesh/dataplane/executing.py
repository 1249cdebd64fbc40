"""Which batches a model server executes, read from the file it keeps: it outlives the process.

The native model server writes it (`rust/model-server/src/executing.rs` describes the format); its supervisor reads it after a
crash to learn what ran, and while it lives to see a batch that does not end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

RECORD_BYTES: Final = 1024
"""The size of a record: a little-endian length of four bytes (0: nothing runs), the batch's number in eight, and the id, cut to
what fits."""
HEAD_BYTES: Final = 12


class Execution(NamedTuple):
    """A batch that runs. `number` is no other batch's of the same process."""

    number: int
    model: str


def executions(path: Path) -> list[Execution]:
    """The batches that ran when the file was last written; empty when none did or there is no file. An id longer than a record
    holds is cut."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for start in range(0, len(content), RECORD_BYTES):
        record = content[start : start + RECORD_BYTES]
        length = int.from_bytes(record[:4], "little")
        if length:
            number = int.from_bytes(record[4:HEAD_BYTES], "little")
            model = record[HEAD_BYTES : HEAD_BYTES + length].decode(errors="replace")
            found.append(Execution(number, model))
    return found


def executing_models(path: Path) -> list[str]:
    """The models of those batches, each once."""
    return list(dict.fromkeys(execution.model for execution in executions(path)))
