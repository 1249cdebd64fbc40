"""One process per state: an advisory lock on a file beside the database, released by the kernel when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from modelmesh.errors import SettingsError


class LockFile:
    """The lock on `path`, held from `acquire` to `release`. The file names the process that holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def acquire(self, what: str) -> None:
        """Take the lock on `what` (named in the error) at once. Raises SettingsError when another process has it,
        OSError when the file cannot be created."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 32).decode(errors="replace").strip()
                os.close(descriptor)
                process = f"process {holder}" if holder.isdigit() else "another process"
                raise SettingsError(
                    f"The state {what} is in use by {process}: stop that one first, or give this one a state "
                    "of its own with --state."
                ) from None
            except OSError:
                os.close(descriptor)
                raise
            if self._is_at_path(descriptor):
                break
            os.close(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Remove the file, then let go of the lock. Idempotent."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_at_path(self, descriptor: int) -> bool:
        """False when the last holder removed the file between our open and our lock."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False
