"""All files of one entry of a folder, by names, sizes and times; and whether they are as they were without listing them again."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

from modelmesh.storage.names import NO_MODELS, Skip, is_half_written, is_version

MAX_DEPTH: Final = 16
MAX_FILES: Final = 10_000
PART: Final = b"\x02"
"""Begins a listing and parts it; never part of a name in one."""


class File(NamedTuple):
    """`name` is relative, with '/' between its parts."""

    name: str
    size_bytes: int
    modified_ns: int


class Walk:
    """All visible files under a folder, links followed."""

    def __init__(self) -> None:
        self.files: list[File] = []
        """Ordered after `folder`."""
        self.tops: set[str] = set()
        """The sub-folders of the top folder."""
        self.problems: dict[str, str] = {}
        """Sub-folder of the top folder ("" for the top itself) -> why its files are not usable."""
        self.changed_ns = 0
        """When a file or folder changed last (ctime: it cannot be set, so copied times do not deceive)."""
        self._modified_ns = 0
        """When the top folder's list of entries changed last."""

    def folder(self, path: str) -> bool:
        """Walk a folder. False when it is a file. Raises OSError when it cannot be read, Skip when it is too large."""
        try:
            self._walk(path, "", "", ())
        except NotADirectoryError:
            return False
        self.files.sort()
        return True

    def listing(self) -> bytes:
        """Of a folder without sub-folders: when its list of entries changed last, and their names, for `is_as_listed`. Empty when
        there is more to it."""
        names = [file.name for file in self.files]
        if self.tops or self.problems or not all(name.isprintable() for name in names):
            return b""
        return PART + PART.join([str(self._modified_ns).encode(), *(name.encode() for name in names)])

    def file(self, path: str, name: str) -> None:
        """Take in a single file. Raises Skip when it is something else."""
        status = os.stat(path)  # noqa: PTH116
        self.changed_ns = status.st_ctime_ns
        if not stat.S_ISREG(status.st_mode):
            raise Skip("it is neither a file nor a folder")
        self._add(name, status)

    def _walk(self, path: str, relative: str, blame: str, ancestors: tuple[tuple[int, int], ...]) -> None:
        """`blame` is the version that problems are about; empty: the whole model."""
        if len(ancestors) > MAX_DEPTH:
            raise Skip(f"its folders are nested more than {MAX_DEPTH} deep")
        folders: list[tuple[str, bool]] = []
        with os.scandir(path) as listing:
            for entry in listing:
                name = entry.name
                if is_half_written(name):
                    self.problems.setdefault(blame, f"it is half-written: {relative}{name} is there")
                elif name[0] == "." or name in NO_MODELS:
                    continue
                elif entry.is_dir():
                    folders.append((name, entry.is_symlink()))
                elif entry.is_file():
                    self._add(relative + name, entry.stat())
                elif entry.is_symlink():
                    self.problems.setdefault(blame, f"the link {relative}{name} points nowhere")
        status = os.stat(path)  # noqa: PTH116
        self.changed_ns = max(self.changed_ns, status.st_ctime_ns)
        if not ancestors:
            self._modified_ns = status.st_mtime_ns
            self.tops.update(name for name, _ in folders)
        here = (*ancestors, (status.st_dev, status.st_ino))
        for name, linked in folders:
            own = name if not ancestors and is_version(name) else blame
            try:
                if not linked or _identity(f"{path}/{name}") not in here:
                    self._walk(f"{path}/{name}", f"{relative}{name}/", own, here)
                    continue
                problem = f"the link {relative}{name} leads back to a folder it is in"
            except OSError as error:
                problem = f"{relative}{name} cannot be read: {error.strerror or error}"
            self.problems.setdefault(own, problem)

    def _add(self, name: str, status: os.stat_result) -> None:
        if len(self.files) >= MAX_FILES:
            raise Skip(f"it has more than {MAX_FILES} files")
        self.files.append(File(name, status.st_size, status.st_mtime_ns))
        self.changed_ns = max(self.changed_ns, status.st_ctime_ns)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino


def fingerprint(path: str, files: Sequence[File]) -> str:
    """10 hex digits that change with any file's name, size or time."""
    digest = hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=5)
    for name, size_bytes, modified_ns in files:
        digest.update(f"\0{name}\0{size_bytes}\0{modified_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def is_as_listed(path: str, listing: bytes, known: bytes) -> bool:
    """Whether a folder without sub-folders still has this listing and the fingerprint `known`."""
    modified, *names = listing.decode().split("\x02")
    try:
        if str(os.stat(path).st_mtime_ns) != modified:  # noqa: PTH116
            return False
        files = []
        for name in names:
            status = os.stat(f"{path}/{name}")  # noqa: PTH116
            files.append(File(name, status.st_size, status.st_mtime_ns))
    except OSError:
        return False
    return fingerprint(path, files).encode() == known
