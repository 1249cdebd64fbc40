"""Files that take effect anew when they change: looked at by stat, off every hot path.

A ConfigMap or Secret is mounted as links through a folder `..data` that is swapped whole; what stat says of the file behind
the link changes with the swap. (A notification by the kernel would not be seen on every kind of mount.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from modelmesh.errors import SettingsError
from modelmesh.journal import Did, Journal

_log = logging.getLogger("modelmesh")

LOOK_S: Final = 1.0
RECHECK_S: Final = 0.5
"""A writer may be half-way: what cannot be used is looked at once more before it is complained of (reference mesh.md 1.4)."""

_Seen = tuple[tuple[int, int, int, int] | None, ...]


class WatchedFiles:
    """Calls `use` when one of the files has changed. `use` reads them and raises SettingsError or OSError when they cannot
    be used; then what was in force stays, and the journal gets one warning per change. One owner: `run` in a task, cancelled
    to stop."""

    def __init__(
        self,
        paths: Sequence[Path],
        use: Callable[[], None],
        journal: Journal,
        what: str,
        *,
        look_s: float = LOOK_S,
        recheck_s: float = RECHECK_S,
    ) -> None:
        """What the files say now is taken to be in force: call `use` before. `what` begins sentences ("The certificate")."""
        self._paths, self._use, self._journal, self._what = tuple(paths), use, journal, what
        self._look_s, self._recheck_s = look_s, recheck_s
        self._seen = self._look()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            if self._look() != self._seen:
                await self._changed()

    async def _changed(self) -> None:
        complaint = self._try()
        if complaint is not None:
            await asyncio.sleep(self._recheck_s)
            complaint = self._try()
        if complaint is None:
            _log.info("%s was read anew.", self._what)
        else:
            self._journal.record(
                Did.WARNED,
                "",
                f"{self._what} has changed and cannot be used, so the old one stays: {complaint}",
            )

    def _try(self) -> str | None:
        """Why it cannot be used; None when it is in force."""
        # Looked at before it is read: a change in between is seen as one more.
        self._seen = self._look()
        try:
            self._use()
        except (SettingsError, OSError, UnicodeDecodeError) as error:
            return str(error)
        return None

    def _look(self) -> _Seen:
        return tuple(map(_stat, self._paths))


def _stat(path: Path) -> tuple[int, int, int, int] | None:
    try:
        at = path.stat()
    except OSError:
        return None
    return at.st_dev, at.st_ino, at.st_mtime_ns, at.st_size
