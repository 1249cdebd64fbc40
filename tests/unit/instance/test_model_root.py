"""Which paths may be registered."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmesh.errors import FailedPrecondition, InvalidInput
from modelmesh.instance.model_root import ModelRoot
from modelmesh.mesh.control import Registration


def admitted(root: Path | None, path: str) -> str:
    return ModelRoot(root).admit(Registration("m", "sklearn", path)).path


def test_paths_under_the_root(tmp_path: Path) -> None:
    assert admitted(tmp_path, str(tmp_path / "a/model")) == str(tmp_path / "a/model")
    assert admitted(tmp_path, "a/model") == str(tmp_path / "a/model")
    assert admitted(tmp_path, f"file://{tmp_path}/a") == str(tmp_path / "a")
    assert admitted(tmp_path, str(tmp_path)) == str(tmp_path)
    assert admitted(Path("/"), "/anything") == "/anything"


def test_links_inside_the_root_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to("v1")
    assert admitted(tmp_path, "current") == str(tmp_path / "current")


def test_a_root_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to("real")
    assert admitted(tmp_path / "root", str(tmp_path / "root/m")) == str(tmp_path / "root/m")


@pytest.mark.parametrize("path", ["/etc/passwd", "../beside", "a/../../beside", "/root/../etc"])
def test_paths_outside_are_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(FailedPrecondition, match=r'Model "m": .* does not lie under the model root .*\.$'):
        admitted(root, path)


def test_a_name_that_only_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(FailedPrecondition):
        admitted(tmp_path / "root", str(tmp_path / "rooted/m"))


def test_links_that_lead_outside_are_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root/link").symlink_to("../outside")
    with pytest.raises(FailedPrecondition):
        admitted(tmp_path / "root", "link/model")


def test_without_a_root_nothing_is_admitted() -> None:
    with pytest.raises(FailedPrecondition, match="no model root; start it with --model-root DIR"):
        admitted(None, "/m")


@pytest.mark.parametrize("path", ["", "s3://bucket/m", "a\0b"])
def test_what_is_no_local_path(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidInput, match='Model "m"'):
        admitted(tmp_path, path)
