"""A short-lived folder for unix sockets: short by name (the kernel allows a socket path of about 100 bytes), private to
the user, removed at the end, and by the next start when its owner was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from modelmesh.errors import SettingsError

_PREFIX: Final = "modelmesh-"
_LOCK: Final = "lock"
_SOCKET_PATH_BYTES_MAX: Final = 100
"""sun_path holds 108 bytes on Linux and 104 on macOS, the closing zero included."""
_LONGEST_NAME: Final = "worker-1023-1023.sock"


class RuntimeDir:
    """Made when constructed (`path`), gone after `remove`. A lock on a file in it says that its owner lives."""

    def __init__(self, base: Path | None = None) -> None:
        """Raises SettingsError when no folder can be made. `base` is where to, by default the user's runtime folder
        ($XDG_RUNTIME_DIR) or the one for temporary files, whichever keeps socket paths short."""
        base = base or _base()
        _remove_abandoned(base)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            self._lock: int | None = _claim(self.path)
        except OSError as error:
            raise SettingsError(f"No folder for sockets can be made in {base}: {error.strerror}.") from error

    def remove(self) -> None:
        """Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _base() -> Path:
    candidates = (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp")
    for candidate in candidates:
        longest = Path(candidate, _PREFIX + "12345678", _LONGEST_NAME)
        fits = len(os.fsencode(longest)) <= _SOCKET_PATH_BYTES_MAX
        if candidate and fits and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate)
    raise SettingsError(
        f"None of {', '.join(filter(None, candidates))} can hold sockets: not writable, or their paths are too long."
    )


def _claim(folder: Path) -> int:
    """The open and locked descriptor of the folder's lock file, which has its name only once it is locked: nobody ever sees an
    unlocked one of a living owner."""
    unnamed = folder / f"{_LOCK}.new"
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unnamed.rename(folder / _LOCK)
    return descriptor


def _remove_abandoned(base: Path) -> None:
    """Folders of ours whose owner is gone. Those without a lock file are being made or removed right now, and left alone."""
    for folder in base.glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, being made, or none of ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(descriptor)
