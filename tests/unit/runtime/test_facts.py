"""Learned facts on disk."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from modelmesh.runtime.facts import Facts
from modelmesh.worker.formats.table import formats

SKLEARN, XGBOOST, ONNX = (formats()[name] for name in ("sklearn", "xgboost", "onnx"))


def test_defaults_count_what_two_formats_share_once() -> None:
    facts = Facts(None)
    assert facts.base_bytes(SKLEARN, [SKLEARN]) == 0
    assert 0 < facts.base_bytes(XGBOOST, [SKLEARN]) < facts.base_bytes(SKLEARN, [])
    assert facts.base_bytes(XGBOOST, []) > facts.base_bytes(XGBOOST, [SKLEARN])
    assert facts.base_bytes(ONNX, []) > 0
    assert facts.idle_base_bytes() > 0


def test_what_was_learned_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    facts = Facts(path)
    facts.learn_base(SKLEARN, [], 123)
    facts.learn_base(XGBOOST, [SKLEARN], 45)
    facts.learn_idle_base(6)
    facts.largest_model_bytes = 789
    facts.save()
    again = Facts(path)
    assert again.base_bytes(SKLEARN, []) == 123
    assert again.base_bytes(XGBOOST, [SKLEARN]) == 45
    assert again.base_bytes(XGBOOST, [SKLEARN, ONNX]) == Facts(None).base_bytes(XGBOOST, [SKLEARN, ONNX])
    assert (again.idle_base_bytes(), again.largest_model_bytes) == (6, 789)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"bases": 5, "largest_model_bytes": 1}', '{"bases": {}}']
)
def test_a_broken_file_is_an_empty_one_and_said_so(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "facts.json"
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        facts = Facts(path)
    assert facts.base_bytes(SKLEARN, []) == Facts(None).base_bytes(SKLEARN, [])
    assert str(path) in caplog.text


def test_a_file_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (tmp_path / "file").touch()
        Facts(tmp_path / "file" / "facts.json").save()
    assert "cannot be saved" in caplog.text
