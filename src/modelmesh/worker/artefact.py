"""The files of a model: names, a cheap fingerprint, the content hash, the first bytes. Never the meaning of a byte."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from modelmesh.errors import Code, LoadFailed

FILES_MAX = 10_000
HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class File:
    """One file; `name` is relative to the artefact's folder, with '/' between parts."""

    name: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Artefact:
    """A model on disk: a folder with its files, or one file (then `folder` is where it lies)."""

    folder: Path
    files: tuple[File, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.files)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def size_of(self, name: str) -> int:
        return next(file.size_bytes for file in self.files if file.name == name)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed, resized or rewritten; says nothing about equal content elsewhere."""
        digest = hashlib.sha256(str(self.folder).encode())
        for file in self.files:
            digest.update(f"\0{file.name}\0{file.size_bytes}\0{file.modified_ns}".encode())
        return digest.hexdigest()

    def content(self) -> str:
        """A hash over names and bytes, equal for equal artefacts wherever they lie. Reads everything. Raises OSError."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}\0{file.size_bytes}\0".encode())
            with (self.folder / file.name).open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    def head(self, name: str) -> bytes:
        """The first bytes of a file, at most `HEAD_BYTES`. Raises LoadFailed."""
        try:
            with (self.folder / name).open("rb") as stream:
                return stream.read(HEAD_BYTES)
        except OSError as error:
            raise unreadable(self.folder / name, error) from error


def read_artefact(path: str) -> Artefact:
    """List the files at a path, hidden ones left out. Raises LoadFailed: NOT_FOUND when nothing is there,
    INVALID_ARGUMENT for an empty folder or one with more than `FILES_MAX` files."""
    if not path:
        raise LoadFailed(
            "The model has no path: register it with the path of its files.", code=Code.INVALID_ARGUMENT
        )
    root = Path(path)
    try:
        status = root.stat()
        if stat.S_ISREG(status.st_mode):
            return Artefact(root.parent, (_file(root.name, status),))
        found = _walk(path)
    except OSError as error:
        raise unreadable(root, error) from error
    if not found:
        raise LoadFailed(f"The folder {root} holds no files.", code=Code.INVALID_ARGUMENT)
    return Artefact(root, tuple(sorted(found, key=lambda file: file.name)))


def _walk(root: str) -> list[File]:
    """By what the listing of a folder tells: this is done anew before each load. Raises OSError, LoadFailed."""
    files: list[File] = []
    folders = [(root, "")]
    while folders:
        folder, within = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append((entry.path, f"{within}{entry.name}/"))
                elif entry.is_file():
                    files.append(_file(within + entry.name, entry.stat()))
                    if len(files) > FILES_MAX:
                        raise LoadFailed(
                            f"The folder {root} holds more than {FILES_MAX:,} files and does not look like one model.",
                            code=Code.INVALID_ARGUMENT,
                        )
    return files


def _file(name: str, status: os.stat_result) -> File:
    return File(name, status.st_size, status.st_mtime_ns)


def unreadable(path: Path, error: OSError) -> LoadFailed:
    """The failure for a path that cannot be read: permanent when it is not there, else worth another try."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return LoadFailed(f"There is nothing at {path}.", code=Code.NOT_FOUND)
    return LoadFailed(f"{path} cannot be read: {error.strerror or error}.", code=Code.UNAVAILABLE)
