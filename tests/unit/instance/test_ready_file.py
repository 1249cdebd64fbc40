"""The ready file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from modelmesh.errors import SettingsError
from modelmesh.instance.ready_file import remove_ready_file, write_ready_file


def test_it_says_where_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ready.json"
    write_ready_file(path, grpc="127.0.0.1:1", rest="http://127.0.0.1:2", ops="http://127.0.0.1:3")
    assert json.loads(path.read_text()) == {
        "grpc": "127.0.0.1:1",
        "rest": "http://127.0.0.1:2",
        "ops": "http://127.0.0.1:3",
        "pid": os.getpid(),
    }
    assert [each.name for each in path.parent.iterdir()] == ["ready.json"]
    remove_ready_file(path)
    remove_ready_file(path)
    assert not path.exists()


def test_another_instances_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    for text in ('{"pid": 1}', "not JSON", "[]"):
        path.write_text(text)
        remove_ready_file(path)
        assert path.exists()


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"^--ready-file: .* cannot be written"):
        write_ready_file(tmp_path / "file" / "ready.json", grpc="", rest="", ops="")
