"""What a supervisor reads of the file that names the executing models."""

from __future__ import annotations

from pathlib import Path

from modelmesh.dataplane.executing import RECORD_BYTES, executing_models


def record(model_id: str, length: int | None = None) -> bytes:
    encoded = model_id.encode()
    return (len(encoded) if length is None else length).to_bytes(4, "little") + encoded.ljust(
        RECORD_BYTES - 4, b"\0"
    )


def test_the_records_that_are_in_use_each_id_once(tmp_path: Path) -> None:
    path = tmp_path / "executing"
    path.write_bytes(record("a") + record("cleared", length=0) + record("größe") + record("a"))
    assert executing_models(path) == ["a", "größe"]


def test_nothing_executes_or_there_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "executing"
    assert executing_models(path) == []
    path.write_bytes(record(""))
    assert executing_models(path) == []


def test_a_cut_file_or_id_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "executing"
    path.write_bytes(record("model-1")[:8])
    assert executing_models(path) == ["mode"]
    path.write_bytes(record("ö" * 510)[: RECORD_BYTES - 1])
    assert executing_models(path)[0].startswith("ö" * 509)
