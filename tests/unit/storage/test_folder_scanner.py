"""What the scanner finds, skips, and when a change counts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from modelmesh.storage.folder import REST_S, FolderScanner, RootMissing
from modelmesh.storage.sightings import FoundModel, Sighting


def guess(files: Sequence[str]) -> str | None:
    """Formats by ending; `known.txt` makes a folder nothing."""
    types = {".onnx": "onnx", ".joblib": "sklearn", ".bst": "xgboost"}
    return next((types[Path(name).suffix] for name in files if Path(name).suffix in types), None)


class Clocks:
    """Time that tests move: `later` for the second look, `calm` to make all files look long untouched."""

    def __init__(self) -> None:
        self.monotonic_s = 0.0
        self.calm = True

    def now_s(self) -> float:
        return self.monotonic_s

    def wall_ns(self) -> int:
        return time.time_ns() + (3600 if self.calm else -3600) * 1_000_000_000


class Folder:
    """A folder with a scanner over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.clocks = Clocks()
        self.stamped = 0
        self.checked: list[str] = []
        """Paths whose content was looked at."""
        self.again()

    def again(self) -> None:
        """A new process scans."""
        self.scanner = FolderScanner(
            self.path, guess, self.check, monotonic_s=self.clocks.now_s, wall_ns=self.clocks.wall_ns
        )

    def check(self, type: str, path: str, files: Sequence[str]) -> str:
        """What begins with `no` is no model."""
        self.checked.append(Path(path).relative_to(self.path).as_posix())
        name = next(name for name in files if Path(name).suffix in (".onnx", ".joblib", ".bst"))
        file = Path(path) / name if Path(path).is_dir() else Path(path)
        with file.open() as stream:
            return f"{name} is no {type} model" if stream.read(2) == "no" else ""

    def write(self, name: str, content: str = "x") -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        self.stamp(path.parent)
        return path

    def stamp(self, path: Path) -> None:
        """Give a folder another time: tests are faster than the clock of some file systems."""
        self.stamped += 1
        os.utime(path, ns=(self.stamped, self.stamped))

    def scan(self, after_s: float = 0.0) -> dict[str, Sighting]:
        self.clocks.monotonic_s += after_s
        return {sighting.name: sighting for batch in self.scanner.scan() for sighting in batch}

    def problem(self, name: str) -> str:
        self.again()
        sighting = self.scan()[name]
        assert sighting.models == ()
        return sighting.problem


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "models")


def only(sighting: Sighting) -> FoundModel:
    (found,) = sighting.models
    return found


def test_folders_and_files_are_models(folder: Folder) -> None:
    folder.write("iris/model.joblib")
    folder.write("deep/data/inner/model.onnx")
    folder.write("wine.v2.onnx")
    found = folder.scan()
    assert list(found) == ["deep", "iris", "wine.v2"]
    iris = only(found["iris"])
    assert (iris.version, iris.path, iris.type) == ("", str(folder.path / "iris"), "sklearn")
    assert len(iris.fingerprint) == 10
    assert int(iris.fingerprint, 16) >= 0
    assert only(found["wine.v2"]).path == str(folder.path / "wine.v2.onnx")
    assert only(found["deep"]).type == "onnx"
    assert folder.scan() == {}, "nothing is news twice"


def test_numeric_folders_are_versions(folder: Folder) -> None:
    for version in ("2", "10", "1"):
        folder.write(f"iris/{version}/model.joblib")
    folder.write("iris/config.pbtxt")
    sighting = folder.scan()["iris"]
    assert [found.version for found in sighting.models] == ["1", "2", "10"]
    assert sighting.models[2].path == str(folder.path / "iris" / "10")
    assert len({found.fingerprint for found in sighting.models}) == 3
    before = {found.version: found.fingerprint for found in sighting.models}
    folder.write("iris/2/model.joblib", "changed")
    after = {found.version: found.fingerprint for found in folder.scan()["iris"].models}
    assert {version for version in before if before[version] != after[version]} == {"2"}


def test_a_model_with_a_numeric_folder_of_its_own_is_one_model(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.write("iris/1/weights.bin")
    assert only(folder.scan()["iris"]).version == ""


def test_versions_stand_and_fall_alone(folder: Folder) -> None:
    folder.write("iris/1/model.joblib")
    folder.write("iris/2/model.joblib.part")
    folder.write("iris/3/notes.txt")
    (folder.path / "iris" / "4").mkdir()
    sighting = folder.scan()["iris"]
    assert [found.version for found in sighting.models] == ["1"]
    assert sighting.unusable == ("2", "3", "4")
    for words in (
        "version 2: it is half-written",
        "version 3: no known model format",
        "version 4: the folder is empty",
    ):
        assert words in sighting.problem


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: folder.write("iris/model.joblib", "longer"),
        lambda folder: (folder.path / "iris/model.joblib").write_text("longer"),
        lambda folder: folder.write("iris/extra.json"),
        lambda folder: folder.write("iris/sub/extra.json"),
        lambda folder: ((folder.path / "iris/old.json").unlink(), folder.stamp(folder.path / "iris")),
        lambda folder: os.utime(folder.path / "iris/model.joblib", ns=(7, 7)),
        lambda folder: (
            (folder.path / "iris/old.json").rename(folder.path / "iris/new.json"),
            folder.stamp(folder.path / "iris"),
        ),
    ],
)
def test_every_change_of_a_file_is_another_fingerprint(folder: Folder, change) -> None:  # type: ignore[no-untyped-def]
    folder.write("iris/model.joblib")
    folder.write("iris/old.json")
    before = only(folder.scan()["iris"]).fingerprint
    change(folder)
    assert only(folder.scan()["iris"]).fingerprint != before


def test_hidden_files_do_not_count(folder: Folder) -> None:
    folder.write("iris/model.joblib")
    folder.scan()
    folder.write("iris/.DS_Store")
    folder.write("iris/.git/objects/x")
    folder.write("iris/__pycache__/x.pyc")
    assert folder.scan() == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("README.md", "no file of a known model format"),
        ("notes/a.txt", "no known model format among its files (a.txt)"),
        (".hidden/model.onnx", "hidden"),
        ("a:1/model.onnx", "reserved"),
        ("a@b/model.onnx", "reserved"),
        ("tail /model.onnx", "blank"),
        ("new\nline/model.onnx", "control"),
        ("model.onnx.part", "half-written"),
        ("iris.tmp/model.onnx", "half-written"),
        ("iris/model.onnx~", "half-written: model.onnx~"),
        ("iris/.model.onnx.Xy12aB", "half-written: .model.onnx.Xy12aB"),
        ("iris/sub/model.onnx.crdownload", "half-written: sub/model.onnx.crdownload"),
    ],
)
def test_skipped_with_a_reason(folder: Folder, name: str, words: str) -> None:
    folder.write("iris/model.onnx")
    folder.write(name)
    entry = name.split("/")[0]
    if "\n" in entry:
        entry = entry.replace("\n", "\\n")
    assert words in folder.problem(entry)


def test_empty_things_are_skipped(folder: Folder) -> None:
    (folder.path / "void").mkdir()
    folder.write("zero.onnx", "")
    assert folder.problem("void") == "the folder is empty"
    assert folder.problem("zero.onnx") == "it is empty"


def test_links(folder: Folder, tmp_path: Path) -> None:
    folder.write("real/model.onnx")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.joblib").write_text("x")
    (folder.path / "linked").symlink_to(elsewhere)
    (folder.path / "file").mkdir()
    (folder.path / "file" / "model.onnx").symlink_to(folder.path / "real" / "model.onnx")
    (folder.path / "loop").mkdir()
    (folder.path / "loop" / "model.onnx").write_text("x")
    (folder.path / "loop" / "again").symlink_to(folder.path / "loop")
    (folder.path / "dangling").mkdir()
    (folder.path / "dangling" / "model.onnx").symlink_to(folder.path / "nowhere")
    (folder.path / "self").symlink_to(folder.path / "self")
    found = folder.scan() | folder.scan(REST_S)
    assert only(found["linked"]).type == "sklearn"
    assert only(found["file"]).type == "onnx"
    assert "leads back" in found["loop"].problem
    assert "points nowhere" in found["dangling"].problem
    assert "cannot be read" in found["self"].problem


def test_what_is_neither_file_nor_folder(folder: Folder) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(folder.path)  # the path may be too long for a socket
        listener.bind("odd.onnx")
        assert folder.problem("odd.onnx") == "it is neither a file nor a folder"


def test_too_much_of_a_folder(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmesh.storage.walk.MAX_FILES", 3)
    for number in range(4):
        folder.write(f"many/{number}.onnx")
    folder.write("/".join(["deep", *"abcdefghijklmnopqrst", "model.onnx"]))
    assert "more than 3 files" in folder.problem("many")
    assert "nested" in folder.problem("deep")


def test_an_unreadable_folder_is_named_and_not_gone(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("secret/model.onnx")
    folder.write("iris/sub/model.onnx")
    folder.scan()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith(("secret", "sub")):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    folder.stamp(folder.path / "secret")
    found = folder.scan() | folder.scan(REST_S)
    assert found["secret"] == Sighting("secret", problem="it cannot be read: Permission denied")
    assert found["iris"].problem == "sub cannot be read: Permission denied"
    assert folder.scan(REST_S) == {}


def test_a_name_taken_twice(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.write("iris.onnx")
    folder.write("wine.bst")
    folder.write("wine.onnx")
    folder.write("wine.txt")
    batches = [sighting for batch in folder.scanner.scan() for sighting in batch]
    assert [(sighting.name, bool(sighting.models)) for sighting in batches] == [
        ("iris", True),
        ("iris.onnx", False),
        ("wine", True),
        ("wine.onnx", False),
        ("wine.txt", False),
    ]
    assert "taken by the folder iris" in batches[1].problem
    assert "taken by wine.bst" in batches[3].problem
    (folder.path / "wine.bst").unlink()
    assert only(folder.scan()["wine"]).type == "onnx"
    assert folder.scan(REST_S) == {}, "wine is not gone, it is another file now"


def test_a_fresh_change_counts_after_two_equal_looks(folder: Folder) -> None:
    folder.clocks.calm = False
    folder.write("iris/model.onnx")
    assert folder.scan() == {}
    assert folder.scanner.pending == ["iris"]
    assert folder.scan(REST_S / 2) == {}
    assert only(folder.scan(REST_S / 2)["iris"]).type == "onnx"
    folder.write("iris/model.onnx", "growing")
    assert folder.scan(9) == {}
    folder.write("iris/model.onnx", "growing more")
    assert folder.scan(9) == {}, "the size is still changing"
    assert list(folder.scan(9)) == ["iris"]
    folder.write("iris/model.onnx", "other")
    folder.scan(9)
    assert folder.scan(9) != {}


def test_a_change_that_was_undone_is_forgotten(folder: Folder) -> None:
    file = folder.write("iris/model.onnx")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    folder.scan()
    folder.clocks.calm = False
    folder.write("iris/model.onnx", "other")
    assert folder.scan() == {}
    folder.write("iris/model.onnx", "x")
    os.utime(file, ns=times)
    assert folder.scan(9) == {}
    assert folder.scanner.pending == []


def test_a_removed_entry_is_gone_after_two_looks(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.write("wine.onnx")
    folder.write("stays/model.onnx")
    folder.scan()
    (folder.path / "iris/model.onnx").unlink()
    (folder.path / "iris").rmdir()
    (folder.path / "wine.onnx").unlink()
    assert folder.scan() == {}
    assert folder.scan(REST_S / 2) == {}
    assert folder.scan(REST_S / 2) == {
        "iris": Sighting("iris", gone=True),
        "wine": Sighting("wine", gone=True),
    }
    assert folder.scan(REST_S) == {}
    folder.write("iris/model.onnx")
    assert only(folder.scan()["iris"]).type == "onnx"


def test_an_entry_that_comes_back_in_between_is_not_gone(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.scan()
    (folder.path / "iris").rename(folder.path.parent / "aside")
    assert folder.scan() == {}
    (folder.path.parent / "aside").rename(folder.path / "iris")
    assert folder.scan(REST_S) == {}
    (folder.path / "iris").rename(folder.path.parent / "aside")
    assert folder.scan(REST_S) == {}, "the first look does not count any more"


def test_a_file_that_takes_the_place_of_a_folder_is_a_change(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.write("other/model.onnx")
    folder.scan()
    (folder.path / "iris/model.onnx").unlink()
    (folder.path / "iris").rmdir()
    folder.write("iris.onnx")
    assert only(folder.scan()["iris"]).path.endswith("iris.onnx")
    assert folder.scan(REST_S) == {}
    assert folder.scan(REST_S) == {}


def test_a_root_that_is_away_removes_nothing(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.scan()
    folder.path.rename(folder.path.parent / "aside")
    with pytest.raises(RootMissing, match="cannot be read"):
        folder.scan()
    folder.path.mkdir()
    (folder.path / "lost+found").mkdir()
    for _ in range(3):
        with pytest.raises(RootMissing, match="not mounted"):
            folder.scan(REST_S)
    (folder.path / "lost+found").rmdir()
    folder.path.rmdir()
    (folder.path.parent / "aside").rename(folder.path)
    assert folder.scan() == {}
    (folder.path / "iris").rename(folder.path.parent / "iris")
    assert folder.scan() == {}
    assert folder.scan(REST_S) == {"iris": Sighting("iris", gone=True)}, "emptied before our eyes"


def test_foreign_content_is_skipped_and_read_once(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.write("notes.bst", "no")
    folder.write("other/model.onnx", "no")
    found = folder.scan()
    assert only(found["iris"]).type == "onnx"
    assert found["notes.bst"] == Sighting("notes.bst", problem="notes.bst is no xgboost model")
    assert found["other"].problem == "model.onnx is no onnx model"
    assert sorted(folder.checked) == ["iris", "notes.bst", "other"]
    assert folder.scan() == {}
    assert len(folder.checked) == 3, "no file is read again while it stays as it is"
    folder.write("notes.bst", "yes")
    folder.write("iris/model.onnx", "no longer")
    found = folder.scan()
    assert only(found["notes"]).type == "xgboost"
    assert found["iris"] == Sighting("iris", problem="model.onnx is no onnx model")


def test_what_is_being_written_is_not_read(folder: Folder) -> None:
    folder.clocks.calm = False
    folder.write("iris/model.onnx", "no")
    assert folder.scan() == {}
    folder.write("iris/model.onnx", "xyz")
    assert folder.scan(REST_S) == {}
    assert folder.checked == []
    assert only(folder.scan(REST_S)["iris"]).type == "onnx"
    assert folder.checked == ["iris"]


def test_foreign_versions_are_skipped_alone(folder: Folder) -> None:
    folder.write("iris/1/model.onnx")
    folder.write("iris/2/model.onnx", "no")
    folder.write("iris/10/notes.txt")
    sighting = folder.scan()["iris"]
    assert [found.version for found in sighting.models] == ["1"]
    assert sighting.unusable == ("2", "10")
    assert sighting.problem.startswith("version 2: model.onnx is no onnx model; version 10: no known")
    folder.write("iris/1/model.onnx", "no")
    assert folder.scan()["iris"].models == ()


def test_a_model_that_became_foreign_keeps_its_name_until_it_is_gone(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.write("iris.bst", "no")
    folder.write("wine.onnx")
    folder.scan()
    folder.write("iris/model.onnx", "no")
    folder.write("wine.onnx", "no")
    assert set(folder.scan()) == {"iris", "wine.onnx"}
    (folder.path / "iris.bst").unlink()
    folder.scan()
    assert folder.scan(REST_S) == {}, "a file that never was a model takes no name with it"
    (folder.path / "wine.onnx").unlink()
    folder.scan()
    assert folder.scan(REST_S) == {"wine": Sighting("wine", gone=True)}


def test_another_file_takes_the_name_of_one_that_became_foreign(folder: Folder) -> None:
    folder.write("wine.bst")
    folder.write("wine.onnx", "xy")
    assert only(folder.scan()["wine"]).type == "xgboost"
    folder.write("wine.bst", "no")
    found = folder.scan()
    assert found["wine.bst"].problem == "wine.bst is no xgboost model"
    assert only(found["wine"]).type == "onnx"
    (folder.path / "wine.onnx").unlink()
    folder.scan()
    assert folder.scan(REST_S) == {"wine": Sighting("wine", gone=True)}, "the first lost its name"


def test_a_folder_named_like_a_file_keeps_its_whole_name(folder: Folder) -> None:
    folder.write("wine.onnx/model.onnx")
    assert list(folder.scan()) == ["wine.onnx"]
    (folder.path / "wine.onnx/model.onnx").unlink()
    (folder.path / "wine.onnx").rmdir()
    folder.scan()
    assert folder.scan(REST_S) == {"wine.onnx": Sighting("wine.onnx", gone=True)}


def test_content_that_cannot_be_read_is_told_once_and_tried_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("iris/model.onnx")
    folder.write("wine.onnx")
    check = folder.check

    def refuse(type: str, path: str, files: Sequence[str]) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(folder, "check", refuse)
    folder.again()
    found = folder.scan()
    assert {sighting.problem for sighting in found.values()} == {"it cannot be read: Permission denied"}
    assert folder.scan() == {}
    monkeypatch.setattr(folder.scanner, "_check", check)
    assert {name: only(sighting).type for name, sighting in folder.scan().items()} == {
        "iris": "onnx",
        "wine": "onnx",
    }
    folder.scan()
    assert len(folder.checked) == 2


def test_what_another_life_knew_must_be_missed_twice(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.scan()
    folder.scanner.expect({"wine.onnx": "wine", "old": "old"})
    assert folder.scan() == {}
    assert folder.scan(REST_S) == {"wine": Sighting("wine", gone=True), "old": Sighting("old", gone=True)}
    folder.again()
    folder.scanner.expect({"iris": "iris"})
    assert list(folder.scan()) == ["iris"]


def test_a_model_of_another_life_that_is_skipped_now_is_gone_with_its_entry(folder: Folder) -> None:
    folder.write("iris/model.onnx", "no")
    assert folder.scan()["iris"].models == ()
    folder.scanner.expect({"iris": "iris"})
    assert folder.scan() == {}
    (folder.path / "iris/model.onnx").unlink()
    (folder.path / "iris").rmdir()
    (folder.path / "stays").mkdir()
    folder.scan()
    assert folder.scan(REST_S) == {"iris": Sighting("iris", gone=True)}


def test_only_some_entries(folder: Folder) -> None:
    for name in "abc":
        folder.write(f"{name}/model.onnx")
    assert [s.name for batch in folder.scanner.scan(["c", "a", "gone"]) for s in batch if s.models] == [
        "a",
        "c",
    ]
    assert list(folder.scan()) == ["b"]


def test_forgotten_names_are_told_again(folder: Folder) -> None:
    folder.write("iris/model.onnx")
    folder.write("wine.onnx")
    folder.scan()
    folder.scanner.forget(["wine", "never"])
    assert list(folder.scan()) == ["wine"]


def test_a_name_is_not_taken_by_what_is_no_model(folder: Folder) -> None:
    folder.write("iris")
    folder.write("iris.txt")
    folder.write("iris.onnx")
    assert only(folder.scan()["iris"]).type == "onnx"


def test_batches_are_bounded_and_a_stop_ends_the_scan(folder: Folder) -> None:
    for number in range(600):
        folder.write(f"m{number:03}.onnx")
    sizes = [len(batch) for batch in folder.scanner.scan()]
    assert sizes == [256, 256, 88]
    folder.again()
    scan = folder.scanner.scan(gently=True)
    next(scan)
    folder.scanner.stop()
    assert list(scan) == []


def test_names_that_are_not_unicode(folder: Folder) -> None:
    os.mkdir(os.fsencode(folder.path) + b"/bad\xff")  # noqa: PTH102
    folder.write("iris/model.onnx")
    os.rename(folder.path / "iris/model.onnx", os.fsencode(folder.path) + b"/iris/m\xff.onnx")  # noqa: PTH104
    found = folder.scan()
    assert only(found["iris"]).type == "onnx"
    (bad,) = [sighting for name, sighting in found.items() if name != "iris"]
    assert "Unicode" in bad.problem
    assert folder.scan() == {}
