"""Structured logs on stderr: lines for people on a terminal, lines of JSON elsewhere. Libraries' logs look the same.

Fields of a record are given as `extra={"fields": {…}}`; ids are fields, so that they are in the line by name.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from modelmesh.settings.tree import Logs


def configure(settings: Logs) -> None:
    """Send all logs of this process to stderr, in the chosen format, from the chosen level on."""
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else ConsoleLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("modelmesh").setLevel(settings.level.upper())


class JsonLines(logging.Formatter):
    """One JSON object per line: at, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line = {
            "at": at,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | _fields(record), default=str, ensure_ascii=False)


class ConsoleLines(logging.Formatter):
    """Time, level if it matters, message, then the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items() if value != "")
        line = f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields
