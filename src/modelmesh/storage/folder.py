"""Finding models in a folder, by names, sizes and times alone: no content is read, nothing is unpickled.

Each sub-folder or single file is a model; numeric sub-folders of a model are its versions. What is no model, or not yet,
is skipped with a reason. A change counts once it has come to rest: its files were last touched a while ago, or two looks at
least a second apart found the same.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import os
import re
import stat
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelmesh.errors import InvalidInput
from modelmesh.registry.ids import RESERVED, check_id
from modelmesh.registry.packed import PackedMap

Guess = Callable[[Sequence[str]], str | None]

BATCH_ENTRIES: Final = 256
MOMENT_ENTRIES: Final = 32
"""A scan that must not disturb rests after so many entries."""
BUSY_SHARE: Final = 0.05
"""The share of a core such a scan may use."""
REST_S: Final = 1.0
"""Two looks this far apart that find the same make a change count."""
QUIET_NS: Final = 2_000_000_000
"""Files last changed longer ago than this are at rest without a second look."""
MAX_DEPTH: Final = 16
MAX_FILES: Final = 10_000
UNFINISHED: Final = (
    ".part",
    ".partial",
    ".tmp",
    ".temp",
    ".crdownload",
    ".download",
    ".filepart",
    ".swp",
    "~",
)
"""Endings that copying tools and editors give to names of what they have not finished."""
RSYNC: Final = re.compile(r"\..+\..+\.[A-Za-z0-9]{6}", re.DOTALL)
"""The names rsync writes under: `.model.onnx.Xy12aB`."""
NO_MODELS: Final = frozenset({"lost+found", "__pycache__"})


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model's files. `version` is empty, or the name of a numeric sub-folder. The fingerprint changes with any file."""

    version: str
    path: str
    type: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """What stands under one name, when it is news. Without models it is skipped (`problem` says why), or `gone`."""

    name: str
    models: tuple[FoundModel, ...] = ()
    """One without a version, or several versions, lowest first."""
    problem: str = ""
    unusable: tuple[str, ...] = ()
    """Versions that are there but skipped."""
    gone: bool = False


class RootMissing(Exception):
    """The folder cannot be read, or is empty where it was not: perhaps it is not mounted. Nothing counts as removed."""


class Skip(Exception):
    """An entry is no model, for the reason given."""


@dataclass(slots=True)
class _Look:
    """What one look at an entry found."""

    sighting: Sighting
    changed_ns: int
    """When a file or folder of it changed last (ctime: it cannot be set, so copied times do not deceive)."""

    listing: bytes = b""
    """Of a folder without sub-folders: when it changed last, and its files, to check it without listing it again."""

    @property
    def signature(self) -> bytes:
        """Equal for equal sightings."""
        models = ";".join(
            f"{found.version}={found.type}={found.fingerprint}" for found in self.sighting.models
        )
        return f"{models}!{self.sighting.problem}".encode().translate(_NO_CONTROL)


_NO_CONTROL: Final = bytes(max(code, 0x20) for code in range(256))
_PART: Final = b"\x02"


class FolderScanner:
    """Not thread-safe: one scan at a time, in any thread. `stop` may be called from another."""

    def __init__(
        self,
        root: Path,
        guess: Guess,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`guess` gives the model type of files with these relative names, or None. `root` is made absolute but not resolved,
        so a link to the folder may be pointed elsewhere."""
        self.root = os.path.abspath(root)  # noqa: PTH100
        self._guess = functools.lru_cache(4096)(guess)
        self._monotonic_s = monotonic_s
        self._wall_ns = wall_ns
        self._counted = PackedMap()
        """Entry -> signature of what was told of it last, and its listing."""
        self._fresh: dict[str, bytes | None] = {}
        """What counts since the batch began, on its way into `_counted`."""
        self._pending: dict[str, tuple[bytes, float]] = {}
        """Entry -> a signature that does not count yet, and when it was first seen."""
        self._unusable: set[str] = set()
        """Entries whose names cannot be written as they are; here they are escaped."""
        self._identity: tuple[int, int] | None = None
        """Device and inode of the root when it last held something."""
        self._stopping = threading.Event()

    @property
    def pending(self) -> list[str]:
        """Entries that are there but do not count yet, because they may still be being written."""
        return [entry for entry, (signature, _) in self._pending.items() if signature]

    def stop(self) -> None:
        """End a scan under way; later ones find nothing."""
        self._stopping.set()

    def knows(self, entry: str) -> bool:
        """Whether an entry of the folder was told of, or was seen and does not count yet."""
        return entry in self._pending or self._counted.get(entry) is not None

    def expect(self, entries: Iterable[str]) -> None:
        """These entries were there in another life: when the next scans do not find them they are gone."""
        self._counted.update(dict.fromkeys(entries, b"?!"))

    def forget(self, names: Iterable[str]) -> None:
        """Tell of these names again at the next scan, as if they were new."""
        for name in names:
            self._counted.update(dict.fromkeys(self._claimants(name)))

    def entries(self) -> list[str]:
        """What the folder holds, ordered. Raises RootMissing."""
        return [*self._list()]

    def scan(self, only: Iterable[str] | None = None, *, gently: bool = False) -> Iterator[list[Sighting]]:
        """What changed since the last scan, or on the first one everything, in batches ordered by entry. `only` looks at these
        entries alone. `gently` keeps to `BUSY_SHARE` of a core. Raises RootMissing."""
        if only is None:
            listed = self.entries()
            gone = self._gone(listed)
        else:
            listed, gone = sorted(only), []
        if gone:
            yield gone
        began_s = time.thread_time()
        batch: list[Sighting] = []
        for index, entry in enumerate(listed):
            if self._stopping.is_set():
                break
            if (sighting := self._news(entry)) is not None:
                batch.append(sighting)
            if gently and index % MOMENT_ENTRIES == MOMENT_ENTRIES - 1:
                self._stopping.wait((time.thread_time() - began_s) * (1 / BUSY_SHARE - 1))
                began_s = time.thread_time()
            if index % BATCH_ENTRIES == BATCH_ENTRIES - 1 and batch:
                self._flush()
                yield batch
                batch = []
                began_s = time.thread_time()
        self._flush()
        if batch:
            yield batch

    def _flush(self) -> None:
        self._counted.update(self._fresh)
        self._fresh.clear()

    def _list(self) -> Iterator[str]:
        """Sorted in runs: one long sort would keep every other thread of the process waiting."""
        runs: list[list[str]] = [[]]
        try:
            status = os.stat(self.root)  # noqa: PTH116
            with os.scandir(self.root) as listing:
                for entry in listing:
                    if len(runs[-1]) == 2048:
                        runs[-1].sort()
                        runs.append([])
                    runs[-1].append(self._usable(entry.name))
        except OSError as error:
            raise RootMissing(
                f"The folder {self.root} cannot be read ({error.strerror or error}): its models are kept as they are."
            ) from error
        runs[-1].sort()
        identity = (status.st_dev, status.st_ino)
        if any(name[0] != "." and name not in NO_MODELS for run in runs for name in run):
            self._identity = identity
        elif len(self._counted) and identity != self._identity:
            raise RootMissing(
                f"The folder {self.root} is empty, as if it were not mounted: the models it held are kept as they are."
            )
        return heapq.merge(*runs)

    def _usable(self, entry: str) -> str:
        if entry.isprintable():
            return entry
        escaped = entry.encode("unicode_escape").decode()
        self._unusable.add(escaped)
        return escaped

    def _gone(self, listed: Sequence[str]) -> list[Sighting]:
        """Entries told of that have been missing in two looks."""
        missing: list[str] = []
        position = 0
        for entry, _ in self._counted.scan():
            while position < len(listed) and listed[position] < entry:
                position += 1
            if position == len(listed) or listed[position] != entry:
                missing.append(entry)
        for entry in [entry for entry in self.pending if not _contains(listed, entry)]:
            del self._pending[entry]
        gone: list[Sighting] = []
        now_s = self._monotonic_s()
        for entry in missing:
            if self._rested(entry, b"", now_s):
                self._counted.update({entry: None})
                name = _stem(entry) if self._guess((entry,)) is not None else entry
                if not any(_contains(listed, other) for other in self._claimants(name)):
                    gone.append(Sighting(name, gone=True))
        return gone

    def _claimants(self, name: str) -> list[str]:
        """The entries that count as the model of this name, lowest first."""
        entries = [(name, self._counted.get(name) or b"!"), *self._counted.scan(name + ".")]
        return [entry for entry, known in entries if known[:1] != b"!" and name in (entry, _stem(entry))]

    def _rested(self, entry: str, signature: bytes, now_s: float) -> bool:
        """Whether this signature was seen before, long enough ago; it is remembered if not."""
        pending = self._pending.get(entry)
        if pending is None or pending[0] != signature:
            self._pending[entry] = (signature, now_s)
            return False
        if now_s - pending[1] < REST_S:
            return False
        del self._pending[entry]
        return True

    def _news(self, entry: str) -> Sighting | None:
        """Look at an entry; None when nothing about it is new, or not at rest."""
        known = self._counted.get(entry) or b""
        if entry not in self._pending and _as_listed(f"{self.root}/{entry}", known):
            return None
        look = self._look(entry)
        signature = look.signature
        if known.partition(_PART)[0] == signature:
            self._pending.pop(entry, None)
            self._remember(entry, known, look)
            return None
        if not self._is_quiet(look.changed_ns) and not self._rested(entry, signature, self._monotonic_s()):
            return None
        self._pending.pop(entry, None)
        self._remember(entry, known, look)
        return look.sighting

    def _is_quiet(self, changed_ns: int) -> bool:
        return 0 < changed_ns < self._wall_ns() - QUIET_NS

    def _remember(self, entry: str, known: bytes, look: _Look) -> None:
        """A folder that was touched just now may be so again within the resolution of its time: that is not relied on."""
        new = look.signature + (look.listing if self._is_quiet(look.changed_ns) else b"")
        if new != known:
            self._fresh[entry] = new

    def _look(self, entry: str) -> _Look:
        path = f"{self.root}/{entry}"
        walk = _Walk()
        try:
            if entry in self._unusable:
                raise Skip("its name contains control characters or is not valid Unicode")
            _check_name(entry)
        except Skip as skip:
            return _Look(Sighting(entry, problem=str(skip)), 1)
        try:
            if walk.folder(path):
                return _Look(self._folder(entry, path, walk), walk.changed_ns, walk.listing())
            walk.file(path, entry)
            return _Look(self._file(entry, path, walk), walk.changed_ns)
        except Skip as skip:
            return _Look(Sighting(entry, problem=_shown(str(skip))), walk.changed_ns)
        except OSError as error:
            return _Look(Sighting(entry, problem=f"it cannot be read: {error.strerror or error}"), 0)

    def _file(self, entry: str, path: str, walk: _Walk) -> Sighting:
        type = self._guess((entry,))
        if type is None:
            raise Skip("it is no file of a known model format")
        if walk.files[0][1] == 0:
            raise Skip("it is empty")
        name = _stem(entry)
        _check_name(name)
        self._flush()
        for other in self._claimants(name):
            if name < other < entry and os.path.lexists(f"{self.root}/{other}"):
                raise Skip(f"the name {name} is taken by {other}")
        if name != entry and os.path.isdir(f"{self.root}/{name}"):  # noqa: PTH112
            raise Skip(f"the name {name} is taken by the folder {name}")
        return Sighting(name, (FoundModel("", path, type, _fingerprint(path, walk.files)),))

    def _folder(self, entry: str, path: str, walk: _Walk) -> Sighting:
        if not walk.files and not walk.problems:
            raise Skip("the folder is empty")
        if not walk.tops:
            return self._plain(entry, path, walk, walk.files)
        versions = sorted({int(top) for top in walk.tops if _is_version(top)})
        own = [file for file in walk.files if not _is_version(file[0].partition("/")[0])]
        if not versions or (own and self._guess(tuple(file[0] for file in own)) is not None):
            return self._plain(entry, path, walk, own)
        return self._versions(entry, path, walk, [str(version) for version in versions])

    def _plain(self, entry: str, path: str, walk: _Walk, own: Sequence[tuple[str, int, int]]) -> Sighting:
        if walk.problems:
            raise Skip(next(iter(walk.problems.values())))
        type = self._guess(tuple(file[0] for file in own))
        if type is None:
            raise Skip(f"no known model format among its files ({_some([file[0] for file in own])})")
        return Sighting(entry, (FoundModel("", path, type, _fingerprint(path, walk.files)),))

    def _versions(self, entry: str, path: str, walk: _Walk, versions: Sequence[str]) -> Sighting:
        models: list[FoundModel] = []
        problems: dict[str, str] = {}
        files: dict[str, list[tuple[str, int, int]]] = {version: [] for version in versions}
        for name, size_bytes, modified_ns in walk.files:
            top, _, rest = name.partition("/")
            if top in files:
                files[top].append((rest, size_bytes, modified_ns))
        for version in versions:
            names = [name for name, _, _ in files[version]]
            type = self._guess(tuple(names)) if names else None
            if version in walk.problems:
                problems[version] = walk.problems[version]
            elif not names:
                problems[version] = "the folder is empty"
            elif type is None:
                problems[version] = f"no known model format among its files ({_some(names)})"
            else:
                own = f"{path}/{version}"
                models.append(FoundModel(version, own, type, _fingerprint(own, files[version])))
        problem = _shown("; ".join(f"version {version}: {text}" for version, text in problems.items()))
        return Sighting(entry, tuple(models), problem, tuple(problems))


class _Walk:
    """All visible files under a folder, links followed."""

    def __init__(self) -> None:
        self.files: list[tuple[str, int, int]] = []
        """(relative name, size, mtime in ns), ordered after `folder`."""
        self.tops: set[str] = set()
        """The sub-folders of the top folder."""
        self.problems: dict[str, str] = {}
        """Sub-folder of the top folder ("" for the top itself) -> why its files are not usable."""
        self.changed_ns = 0
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
        """See `_Look.listing`; empty when there is more to it than files."""
        names = [name for name, _, _ in self.files]
        if self.tops or self.problems or not all(name.isprintable() for name in names):
            return b""
        return _PART + _PART.join([str(self._modified_ns).encode(), *(name.encode() for name in names)])

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
                if _is_half_written(name):
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
            own = name if not ancestors and _is_version(name) else blame
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
        self.files.append((name, status.st_size, status.st_mtime_ns))
        self.changed_ns = max(self.changed_ns, status.st_ctime_ns)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _as_listed(path: str, known: bytes) -> bool:
    """Whether a folder without sub-folders is as it was when it was listed, without listing it."""
    signature, found, listing = known.partition(_PART)
    if not found:
        return False
    modified, *names = listing.decode().split("\x02")
    try:
        if str(os.stat(path).st_mtime_ns) != modified:  # noqa: PTH116
            return False
        files = []
        for name in names:
            status = os.stat(f"{path}/{name}")  # noqa: PTH116
            files.append((name, status.st_size, status.st_mtime_ns))
    except OSError:
        return False
    return signature.endswith(b"=%b!" % _fingerprint(path, files).encode())


def _check_name(name: str) -> None:
    """Raises Skip when an entry's name cannot be a model's."""
    if name[0] == ".":
        raise Skip("it is hidden")
    if name in NO_MODELS:
        raise Skip("it is no model's name")
    if _is_half_written(name):
        raise Skip("it is half-written, by its name")
    if any(character in name for character in RESERVED):
        raise Skip("':' and '@' are reserved in names: rename it")
    try:
        check_id(name)
    except InvalidInput as error:
        raise Skip(f"its name cannot be a model's: {error}") from error


def _is_half_written(name: str) -> bool:
    return (
        name.endswith(UNFINISHED) or name[0] == "~" or (name[0] == "." and RSYNC.fullmatch(name) is not None)
    )


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and (name == "0" or name[0] != "0")


def _contains(ordered: Sequence[str], entry: str) -> bool:
    index = bisect_left(ordered, entry)
    return index < len(ordered) and ordered[index] == entry


def _shown(text: str) -> str:
    """Text that can be printed and stored, whatever the names of files in it."""
    return text.encode(errors="backslashreplace").decode()


def _stem(entry: str) -> str:
    stem, dot, _ = entry.rpartition(".")
    return stem if dot and stem else entry


def _fingerprint(path: str, files: Sequence[tuple[str, int, int]]) -> str:
    digest = hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=5)
    for name, size_bytes, modified_ns in files:
        digest.update(f"\0{name}\0{size_bytes}\0{modified_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
