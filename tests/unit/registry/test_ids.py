"""What an id may look like, and how folder mode composes ids."""

from __future__ import annotations

import pytest

from modelmesh.errors import InvalidInput
from modelmesh.registry.ids import (
    check_id,
    concrete_id,
    follows_versions,
    name_of,
    split_version,
    version_name,
)


@pytest.mark.parametrize(
    "id", ["iris", "a/b/c", "iris__ksp-1a2b", "Größe", "model 1", "x" * 1024, "iris:2@0123456789"]
)
def test_accepted(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize(
    "id", ["", " ", "\t", " iris", "iris ", "a\nb", "a\x00b", "a\x7fb", "x" * 1025, "\udc80", "é" * 513]
)
def test_refused(id: str) -> None:
    with pytest.raises(InvalidInput, match="vmodel id"):
        check_id(id, "vmodel")


def test_composed() -> None:
    assert concrete_id("iris", "0123456789") == "iris@0123456789"
    assert concrete_id(version_name("iris", 2), "0123456789") == "iris:2@0123456789"
    assert name_of("iris:2@0123456789") == "iris:2"
    assert name_of("iris") == "iris"
    assert split_version("iris:2") == ("iris", "2")
    assert split_version("iris") == ("iris", "")
    assert split_version("urn:iris") == ("urn:iris", "")


def test_only_a_bare_name_follows_versions() -> None:
    assert follows_versions("iris", "iris:2@0123456789")
    assert not follows_versions("iris:2", "iris:2@0123456789")
    assert not follows_versions("iris", "iris@0123456789")
