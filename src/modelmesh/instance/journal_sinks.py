"""Where journal entries go besides the ring in memory: the log, and a file of JSON lines."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Final

from modelmesh.errors import SettingsError
from modelmesh.journal import Did, Entry

_log = logging.getLogger("modelmesh.journal")

_FOR_PEOPLE: Final = frozenset(
    {
        Did.SKIPPED,
        Did.WARNED,
        Did.LOAD_FAILED,
        Did.QUARANTINED,
        Did.STRUCK,
        Did.EJECTED,
        Did.SUSPECTED,
        Did.WORKER_DIED,
        Did.WORKER_RECYCLED,
    }
)
"""What somebody should look at."""
_OF_THE_MESH: Final = frozenset(
    {
        Did.JOINED,
        Did.LOST,
        Did.REVIVED,
        Did.MOVED,
        Did.CONFIGURED,
        Did.CORDONED,
        Did.UNCORDONED,
        Did.DRAINING,
    }
)
"""What happens to instances, where no model is named. The rest is logged for those who debug."""
_WAITING_MAX: Final = 10_000
_BATCH: Final = 500


def log_entry(entry: Entry) -> None:
    """Warnings for what somebody should look at; at info what happens to instances, and what a request with told headers caused;
    the rest at debug."""
    level = logging.DEBUG
    if entry.did in _FOR_PEOPLE:
        level = logging.WARNING
    elif entry.request or (entry.did in _OF_THE_MESH and not entry.model):
        level = logging.INFO
    if _log.isEnabledFor(level):
        extra = {"fields": {**entry.request, "did": str(entry.did), "model": entry.model, **entry.numbers}}
        _log.log(level, "%s", entry.reason, extra=extra)


class JournalFile:
    """Appends entries to a file from a thread of its own, so that a slow disk stops no decision. When it cannot keep up,
    entries are left out and their number is written instead."""

    def __init__(self, path: Path) -> None:
        """Raises SettingsError when the file cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--journal-file: {path} cannot be written: {error.strerror}.") from error
        self._waiting: Queue[Entry | None] = Queue(_WAITING_MAX)
        self._left_out = 0
        self._thread = threading.Thread(target=self._write, name="journal file", daemon=True)
        self._thread.start()

    def append(self, entry: Entry) -> None:
        """Never blocks."""
        try:
            self._waiting.put_nowait(entry)
        except Full:
            self._left_out += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for at most `timeout_s`, and close. Idempotent."""
        if self._thread.is_alive():
            self._waiting.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)

    def _write(self) -> None:
        with self._file:
            while True:
                entries = [self._waiting.get()]
                try:
                    while len(entries) < _BATCH:
                        entries.append(self._waiting.get_nowait())
                except Empty:
                    pass
                if not self._write_all([entry for entry in entries if entry is not None]) or None in entries:
                    return

    def _write_all(self, entries: list[Entry]) -> bool:
        lines = [_line(entry) for entry in entries]
        left_out, self._left_out = self._left_out, 0
        if left_out:
            lines.append(json.dumps({"left_out": left_out}))
        try:
            self._file.write("".join(f"{line}\n" for line in lines))
            self._file.flush()
        except OSError as error:
            _log.error(
                "The journal file cannot be written any more (%s); entries stay in memory only.", error
            )
            return False
        return True


def _line(entry: Entry) -> str:
    return json.dumps(
        {
            "sequence": entry.sequence,
            "at_unix_s": entry.wall_s,
            "did": str(entry.did),
            "model": entry.model,
            "reason": entry.reason,
            "numbers": dict(entry.numbers),
            **({"request": dict(entry.request)} if entry.request else {}),
        },
        ensure_ascii=False,
    )
