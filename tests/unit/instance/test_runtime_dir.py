"""The folder for sockets: private, short, and never left behind for long."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelmesh.errors import SettingsError
from modelmesh.instance.runtime_dir import RuntimeDir


def test_it_is_private_and_goes(tmp_path: Path) -> None:
    made = RuntimeDir(tmp_path)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    made.remove()
    made.remove()
    assert list(tmp_path.iterdir()) == []


def test_one_in_use_is_left_alone(tmp_path: Path) -> None:
    first, second = RuntimeDir(tmp_path), RuntimeDir(tmp_path)
    assert first.path.exists()
    assert first.path != second.path
    first.remove()
    second.remove()


def before_first(
    monkeypatch: pytest.MonkeyPatch, call: tuple[Any, str], about: Path, act: Callable[[], object]
) -> None:
    """Do something else just before a function is first called for a path below `about`, or for a descriptor."""
    function, acts = getattr(*call), [act]

    def called(subject: Any, *args: Any, **kwargs: Any) -> Any:
        if acts and (isinstance(subject, int) or str(subject).startswith(str(about))):
            acts.pop()()
        return function(subject, *args, **kwargs)

    monkeypatch.setattr(*call, called)


@pytest.mark.parametrize("call", [(os, "stat"), (os, "open"), (fcntl, "flock")])
def test_one_that_is_removed_while_it_is_looked_at_disturbs_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[Any, str]
) -> None:
    going = RuntimeDir(tmp_path)
    before_first(monkeypatch, call, going.path, going.remove)
    made = RuntimeDir(tmp_path)
    assert list(tmp_path.iterdir()) == [made.path]
    made.remove()


@pytest.mark.parametrize("call", [(os, "open"), (fcntl, "flock"), (os, "rename")])
def test_one_that_is_being_made_is_not_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[Any, str]
) -> None:
    others: list[RuntimeDir] = []
    before_first(monkeypatch, call, tmp_path, lambda: others.append(RuntimeDir(tmp_path)))
    made = RuntimeDir(tmp_path)
    (other,) = others
    assert sorted(tmp_path.iterdir()) == sorted([made.path, other.path])
    RuntimeDir(tmp_path).remove()
    assert made.path.exists() and other.path.exists(), "both hold their locks"
    made.remove()
    other.remove()


def test_what_a_killed_owner_left_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from modelmesh.instance.runtime_dir import RuntimeDir;"
        "made = RuntimeDir(Path(sys.argv[1])); (made.path / 'worker-0-1.sock').touch();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=30)
    (abandoned,) = tmp_path.iterdir()
    made = RuntimeDir(tmp_path)
    assert not abandoned.exists()
    made.remove()


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "modelmesh-notes").mkdir()
    RuntimeDir(tmp_path).remove()
    assert (tmp_path / "modelmesh-notes").exists()


def test_paths_too_long_for_a_socket_are_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    made = RuntimeDir()
    try:
        assert len(os.fsencode(made.path / "worker-1023-1023.sock")) <= 100
    finally:
        made.remove()


def test_nowhere_to_make_it_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"No folder for sockets can be made in .*: No such file"):
        RuntimeDir(tmp_path / "none")
