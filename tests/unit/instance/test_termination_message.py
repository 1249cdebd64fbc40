"""Where the sentence of a failed start is left."""

from pathlib import Path

import pytest

from modelmesh.instance.termination_message import leave_message, message_path
from modelmesh.settings.sources import read_settings


def test_the_setting_says_where_also_when_other_settings_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "none"
    assert message_path(read_settings({"termination_message": "/a"}, {}), {}) == Path("/a")
    assert message_path(None, {"termination_message": "/b"}) == Path("/b")
    monkeypatch.setenv("LL_TERMINATION_MSG_PATH", "/c")
    assert message_path(None, {"termination_message": None}) == Path("/c")
    monkeypatch.delenv("LL_TERMINATION_MSG_PATH")
    assert message_path(None, {}, nowhere) is None
    nowhere.touch()
    assert message_path(None, {}, nowhere) == nowhere


def test_no_more_is_written_than_is_read(tmp_path: Path) -> None:
    path = tmp_path / "message"
    leave_message("a" * 5000, path)
    assert path.read_text() == "a" * 4096


def test_what_cannot_be_written_is_told_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave_message("The port is taken.", tmp_path / "no" / "folder")
    assert "cannot be written" in caplog.text
    leave_message("The port is taken.", None)
