"""What a supervisor reads of the file that names the executing models."""

from __future__ import annotations

from pathlib import Path

from modelmesh.dataplane.executing import (
    HEAD_BYTES,
    RECORD_BYTES,
    Execution,
    executing_models,
    executions,
)


def record(model_id: str, length: int | None = None, number: int = 0) -> bytes:
    encoded = model_id.encode()
    head = (len(encoded) if length is None else length).to_bytes(4, "little") + number.to_bytes(8, "little")
    return head + encoded.ljust(RECORD_BYTES - HEAD_BYTES, b"\0")


def test_the_records_that_are_in_use_each_id_once(tmp_path: Path) -> None:
    path = tmp_path / "executing"
    cleared = record("cleared", length=0, number=2)
    path.write_bytes(
        record("a", number=1) + cleared + record("größe", number=3) + record("a", number=1 << 40)
    )
    assert executing_models(path) == ["a", "größe"]
    assert executions(path) == [Execution(1, "a"), Execution(3, "größe"), Execution(1 << 40, "a")]


def test_nothing_executes_or_there_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "executing"
    assert executing_models(path) == []
    path.write_bytes(record(""))
    assert executing_models(path) == []


def test_a_cut_file_or_id_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "executing"
    path.write_bytes(record("model-1")[: HEAD_BYTES + 4])
    assert executing_models(path) == ["mode"]
    path.write_bytes(record("ö" * 506)[: RECORD_BYTES - 1])
    assert executing_models(path)[0].startswith("ö" * 505)
