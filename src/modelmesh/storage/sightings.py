"""What stands under one entry of a folder: judged by names first, and once it is at rest by its first bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from modelmesh.storage.names import Skip, check_name, is_version, shown, some, stem
from modelmesh.storage.walk import File, Walk, fingerprint

Guess = Callable[[Sequence[str]], str | None]
"""The model type of files with these relative names; None when they are no model."""
Check = Callable[[str, str, Sequence[str]], str]
"""Why the files at a path are no model of a type, judged by their content; empty when they may be. Takes the type, the path
of a folder or file, and the relative names of the files (of a file: its own name). Raises OSError when they cannot be read."""

_NO_CONTROL: Final = bytes(max(code, 0x20) for code in range(256))


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


@dataclass(slots=True)
class Look:
    """What one look at an entry found, by names, sizes and times alone."""

    entry: str
    name: str
    """The model's name: the entry's, or the stem of a file's."""
    candidates: dict[FoundModel, tuple[str, ...]] = field(default_factory=dict)
    """What may be a model, lowest version first, and the names of its files."""
    problems: dict[str, str] = field(default_factory=dict)
    """Version -> why it is skipped; under "" the whole entry is."""
    changed_ns: int = 0
    """See `Walk.changed_ns`; 0: unknown."""
    listing: bytes = b""
    """See `Walk.listing`."""

    def signature(self) -> bytes:
        """Equal for equal looks."""
        models = ";".join(f"{found.version}={found.type}={found.fingerprint}" for found in self.candidates)
        return f"{models}!{_sentence(self.problems)}".encode().translate(_NO_CONTROL)

    def checked(self, check: Check) -> tuple[Sighting, bool]:
        """What is left when the content has been looked at, and whether that stands as long as the files are the same."""
        models: list[FoundModel] = []
        problems = dict(self.problems)
        stands = True
        for found, files in self.candidates.items():
            try:
                problem = check(found.type, found.path, files)
            except OSError as error:
                problem = f"it cannot be read: {error.strerror or error}"
                stands = False
            if problem:
                problems[found.version] = shown(problem)
            else:
                models.append(found)
        name = self.name if models else self.entry
        if not problems:
            return Sighting(name, tuple(models)), stands
        unusable = tuple(version for version in _ordered(problems) if version)
        return Sighting(name, tuple(models), _sentence(problems), unusable), stands


def _sentence(problems: dict[str, str]) -> str:
    return "; ".join(
        f"version {version}: {problems[version]}" if version else problems[version]
        for version in _ordered(problems)
    )


def _ordered(versions: Iterable[str]) -> list[str]:
    return sorted(versions, key=lambda version: int(version or -1))


def look_at_file(entry: str, path: str, walk: Walk, guess: Guess) -> Look:
    """A single file. Raises Skip."""
    type = guess((entry,))
    if type is None:
        raise Skip("it is no file of a known model format")
    if walk.files[0].size_bytes == 0:
        raise Skip("it is empty")
    name = stem(entry)
    check_name(name)
    found = FoundModel("", path, type, fingerprint(path, walk.files))
    return Look(entry, name, {found: (entry,)}, changed_ns=walk.changed_ns)


def look_at_folder(entry: str, path: str, walk: Walk, guess: Guess) -> Look:
    """A folder: one model, or several versions of it. Raises Skip."""
    if not walk.files and not walk.problems:
        raise Skip("the folder is empty")
    look = Look(entry, entry, changed_ns=walk.changed_ns, listing=walk.listing())
    versions = sorted({int(top) for top in walk.tops if is_version(top)})
    own = [file.name for file in walk.files if not walk.tops or not is_version(file.name.partition("/")[0])]
    if not versions or (own and guess(tuple(own)) is not None):
        if walk.problems:
            raise Skip(next(iter(walk.problems.values())))
        look.candidates[_found("", path, own, walk.files, guess)] = tuple(own)
        return look
    files: dict[str, list[File]] = {str(version): [] for version in versions}
    for file in walk.files:
        top, _, rest = file.name.partition("/")
        if top in files:
            files[top].append(file._replace(name=rest))
    for version, inside in files.items():
        try:
            if version in walk.problems:
                raise Skip(walk.problems[version])
            if not inside:
                raise Skip("the folder is empty")
            names = [file.name for file in inside]
            found = _found(version, f"{path}/{version}", names, inside, guess)
            look.candidates[found] = tuple(names)
        except Skip as skip:
            look.problems[version] = shown(str(skip))
    return look


def _found(version: str, path: str, names: list[str], files: Sequence[File], guess: Guess) -> FoundModel:
    """Raises Skip when the names are no model's."""
    type = guess(tuple(names))
    if type is None:
        raise Skip(f"no known model format among its files ({some(names)})")
    return FoundModel(version, path, type, fingerprint(path, files))
