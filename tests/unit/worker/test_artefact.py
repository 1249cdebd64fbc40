"""The files of a model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelmesh.errors import Code, LoadFailed
from modelmesh.worker import artefact
from modelmesh.worker.artefact import read_artefact


def _write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_folder_is_listed_with_what_lies_below(tmp_path: Path) -> None:
    for name in ("model.onnx", "weights/a.bin", ".hidden", ".cache/b", "z.txt"):
        _write(tmp_path / name, b"12345")
    found = read_artefact(str(tmp_path))
    assert found.names == ("model.onnx", "weights/a.bin", "z.txt")
    assert found.size_bytes == 15
    assert found.size_of("z.txt") == 5


def test_a_single_file_is_an_artefact(tmp_path: Path) -> None:
    path = _write(tmp_path / "iris.joblib", b"abc")
    _write(tmp_path / "other.joblib")
    found = read_artefact(str(path))
    assert (found.folder, found.names, found.head("iris.joblib")) == (tmp_path, ("iris.joblib",), b"abc")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda root: str(root / "nothing"), Code.NOT_FOUND),
        (lambda root: "", Code.INVALID_ARGUMENT),
        (lambda root: str(root), Code.INVALID_ARGUMENT),
        (lambda root: str(_write(root / "file") / "below"), Code.NOT_FOUND),
    ],
    ids=["absent", "no path", "empty folder", "below a file"],
)
def test_what_is_no_model_is_refused_with_a_code(make: object, code: Code, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed) as failure:
        read_artefact(make(tmp_path))  # type: ignore[operator]
    assert failure.value.code is code


def test_a_folder_of_too_many_files_is_not_walked_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefact, "FILES_MAX", 5)
    for number in range(7):
        _write(tmp_path / str(number))
    with pytest.raises(LoadFailed, match="more than 5 files"):
        read_artefact(str(tmp_path))


def test_the_fingerprint_follows_names_sizes_and_times(tmp_path: Path) -> None:
    path = _write(tmp_path / "model.onnx", b"123")
    os.utime(path, ns=(1, 1))
    first = read_artefact(str(tmp_path)).fingerprint()
    assert read_artefact(str(tmp_path)).fingerprint() == first
    os.utime(path, ns=(1, 2))
    touched = read_artefact(str(tmp_path)).fingerprint()
    path.write_bytes(b"1234")
    os.utime(path, ns=(1, 2))
    grown = read_artefact(str(tmp_path)).fingerprint()
    path.rename(tmp_path / "other.onnx")
    renamed = read_artefact(str(tmp_path)).fingerprint()
    assert len({first, touched, grown, renamed}) == 4


def test_the_content_is_that_of_equal_files_anywhere(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        _write(tmp_path / folder / "model.onnx", b"123")
        _write(tmp_path / folder / "w.bin", b"45")
    contents = {read_artefact(str(tmp_path / folder)).content() for folder in ("a", "b")}
    assert len(contents) == 1
    _write(tmp_path / "b" / "model.onnx", b"1234")
    _write(tmp_path / "b" / "w.bin", b"5")
    assert read_artefact(str(tmp_path / "b")).content() not in contents
