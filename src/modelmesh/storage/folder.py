"""What changed in a folder of models since it was last looked through.

Each sub-folder or single file is a model; numeric sub-folders of a model are its versions. Names, sizes and times are looked
at; only of what changed are the first bytes read, once it is at rest: its files were last touched a while ago, or two looks
at least a second apart found the same. What is no model, or not yet, is skipped with a reason.
"""

from __future__ import annotations

import functools
import heapq
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from modelmesh.registry.packed import PackedMap
from modelmesh.storage.names import NO_MODELS, Skip, check_name, shown, stem
from modelmesh.storage.sightings import Check, Guess, Look, Sighting, look_at_file, look_at_folder
from modelmesh.storage.walk import PART, Walk, is_as_listed

BATCH_ENTRIES: Final = 256
MOMENT_ENTRIES: Final = 32
"""A scan that must not disturb rests after so many entries."""
BUSY_SHARE: Final = 0.05
"""The share of a core such a scan may use."""
REST_S: Final = 1.0
"""Two looks this far apart that find the same make a change count."""
QUIET_NS: Final = 2_000_000_000
"""Files last changed longer ago than this are at rest without a second look."""

# What is remembered of an entry begins with what was told of it last, and whether its name is that of the model.
_MODEL: Final = b"m"
_FORMER: Final = b"f"
"""It is skipped, but was a model before: that keeps its name until it is gone, or another entry is the model of this name."""
_SKIPPED: Final = b"s"
_WHOLE: Final = b"="
_STEM: Final = b"."
_NEVER: Final = b"?"
"""A signature that no look has."""


class RootMissing(Exception):
    """The folder cannot be read, or is empty where it was not: perhaps it is not mounted. Nothing counts as removed."""


class FolderScanner:
    """Not thread-safe: one scan at a time, in any thread. `stop` may be called from another."""

    def __init__(
        self,
        root: Path,
        guess: Guess,
        check: Check,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`root` is made absolute but not resolved, so a link to the folder may be pointed elsewhere. `guess` must always answer
        the same; `check` is asked once of files that stay as they are."""
        self.root = os.path.abspath(root)  # noqa: PTH100
        self._guess = functools.lru_cache(4096)(guess)
        self._check = check
        self._monotonic_s = monotonic_s
        self._wall_ns = wall_ns
        self._counted = PackedMap()
        """Entry -> what was told of it, the signature of its look, its listing."""
        self._fresh: dict[str, bytes | None] = {}
        """What counts since the batch began, on its way into `_counted`."""
        self._pending: dict[str, tuple[bytes, float]] = {}
        """Entry -> a signature that does not count yet, and when it was first seen."""
        self._unread: dict[str, str] = {}
        """Entries whose content could not be read, which is tried at each scan, and what was told of that."""
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

    def holds(self, entry: str) -> bool:
        """Whether an entry of the folder is a model, by what was told of it last."""
        return (self._counted.get(entry) or b"")[:1] == _MODEL

    def expect(self, entries: Mapping[str, str]) -> None:
        """These entries were the models of these names in another life: when the next scans do not find them they are gone."""
        for entry, name in entries.items():
            known = self._counted.get(entry) or b""
            if known[:1] != _MODEL:
                self._fresh[entry] = _FORMER + _kind(entry, name) + (known[2:] or _NEVER)
        self._flush()

    def forget(self, names: Iterable[str]) -> None:
        """Tell of these names again at the next scan, as if they were new."""
        for name in names:
            for entry, known in self._holders(name):
                self._fresh[entry] = known[:2] + _NEVER
        self._flush()

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
        missing: list[tuple[str, bytes]] = []
        position = 0
        for entry, known in self._counted.scan():
            while position < len(listed) and listed[position] < entry:
                position += 1
            if position == len(listed) or listed[position] != entry:
                missing.append((entry, known))
        for entry in [entry for entry in self.pending if not _contains(listed, entry)]:
            del self._pending[entry]
        gone: list[Sighting] = []
        now_s = self._monotonic_s()
        for entry, known in missing:
            if self._rested(entry, b"", now_s):
                self._counted.update({entry: None})
                self._unread.pop(entry, None)
                name = stem(entry) if known[1:2] == _STEM else entry
                if known[:1] != _SKIPPED and not self._is_kept(name, known[:1], listed):
                    gone.append(Sighting(name, gone=True))
        return gone

    def _is_kept(self, name: str, told: bytes, listed: Sequence[str]) -> bool:
        """Whether there is another entry for the name of one that went, of which `told` was told. Former models do not count
        where a later one took their name."""
        return any(
            (known[:1] == _MODEL or told == _FORMER) and _contains(listed, other)
            for other, known in self._holders(name)
        )

    def _holders(self, name: str) -> list[tuple[str, bytes]]:
        """The entries that are, or were, the model of this name, lowest first; with what is known of them."""
        entries = [(name, self._counted.get(name) or _SKIPPED), *self._counted.scan(name + ".")]
        return [
            (entry, known)
            for entry, known in entries
            if known[:1] != _SKIPPED and name == (stem(entry) if known[1:2] == _STEM else entry)
        ]

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
        if entry not in self._pending and entry not in self._unread and self._is_as_listed(entry, known):
            return None
        look = self._look(entry)
        signature = look.signature()
        if known[2:].partition(PART)[0] == signature:
            self._pending.pop(entry, None)
            if entry not in self._unread:
                self._remember(entry, known, known[:2] + signature, look)
                return None
        elif not self._is_quiet(look.changed_ns) and not self._rested(entry, signature, self._monotonic_s()):
            return None
        self._pending.pop(entry, None)
        return self._tell(look, signature, known)

    def _tell(self, look: Look, signature: bytes, known: bytes) -> Sighting | None:
        """Look into what is at rest and remember what is told of it; None when that was told before."""
        sighting, stands = look.checked(self._check)
        told = self._unread.pop(look.entry, None)
        if not stands:
            self._unread[look.entry] = sighting.problem
        if sighting.models:
            state = _MODEL + _kind(look.entry, look.name)
        elif known[:1] in (_MODEL, _FORMER):
            state = _FORMER + known[1:2]
        else:
            state = _SKIPPED + _kind(look.entry, look.name)
        self._remember(look.entry, known, state + signature, look)
        return None if told is not None and not stands and told == sighting.problem else sighting

    def _is_as_listed(self, entry: str, known: bytes) -> bool:
        signature, _, listing = known.partition(PART)
        fingerprint = signature[-11:-1]
        return bool(listing) and is_as_listed(f"{self.root}/{entry}", listing, fingerprint)

    def _is_quiet(self, changed_ns: int) -> bool:
        return 0 < changed_ns < self._wall_ns() - QUIET_NS

    def _remember(self, entry: str, known: bytes, new: bytes, look: Look) -> None:
        """A folder that was touched just now may be so again within the resolution of its time: that is not relied on."""
        if self._is_quiet(look.changed_ns):
            new += look.listing
        if new != known:
            self._fresh[entry] = new

    def _look(self, entry: str) -> Look:
        path = f"{self.root}/{entry}"
        walk = Walk()
        try:
            if entry in self._unusable:
                raise Skip("its name contains control characters or is not valid Unicode")
            check_name(entry)
        except Skip as skip:
            return Look(entry, entry, problems={"": str(skip)}, changed_ns=1)
        try:
            if walk.folder(path):
                return look_at_folder(entry, path, walk, self._guess)
            walk.file(path, entry)
            look = look_at_file(entry, path, walk, self._guess)
            self._check_free(look)
            return look
        except Skip as skip:
            problem, changed_ns = shown(str(skip)), walk.changed_ns
        except OSError as error:
            problem, changed_ns = f"it cannot be read: {error.strerror or error}", 0
        return Look(entry, entry, problems={"": problem}, changed_ns=changed_ns)

    def _check_free(self, look: Look) -> None:
        """Raises Skip when another entry is the model of a file's name."""
        self._flush()
        for other, known in self._holders(look.name):
            if (
                known[:1] == _MODEL
                and look.name < other < look.entry
                and os.path.lexists(f"{self.root}/{other}")
            ):
                raise Skip(f"the name {look.name} is taken by {other}")
        if look.name != look.entry and os.path.isdir(f"{self.root}/{look.name}"):  # noqa: PTH112
            raise Skip(f"the name {look.name} is taken by the folder {look.name}")


def _kind(entry: str, name: str) -> bytes:
    return _WHOLE if entry == name else _STEM


def _contains(ordered: Sequence[str], entry: str) -> bool:
    index = bisect_left(ordered, entry)
    return index < len(ordered) and ordered[index] == entry
