"""Log lines for programs and for people."""

from __future__ import annotations

import json
import logging
import sys

from modelmesh.cli.logs import ConsoleLines, JsonLines


def record(level: int, message: str, exception: bool = False, **fields: object) -> logging.LogRecord:
    try:
        raise ValueError("the cause")
    except ValueError:
        information = sys.exc_info() if exception else None
    made = logging.LogRecord("modelmesh.mesh", level, __file__, 1, message, (), information)
    made.created, made.msecs = 0.25, 250.0
    made.fields = fields
    return made


def test_lines_for_programs() -> None:
    line = JsonLines().format(record(logging.WARNING, "It failed.\nTwice.", model="m", size_bytes=7))
    assert "\n" not in line
    assert json.loads(line) == {
        "at": "1970-01-01T00:00:00.250Z",
        "level": "warning",
        "logger": "modelmesh.mesh",
        "message": "It failed.\nTwice.",
        "model": "m",
        "size_bytes": 7,
    }


def test_exceptions_stay_in_the_line() -> None:
    line = json.loads(JsonLines().format(record(logging.ERROR, "It failed.", exception=True)))
    assert line["exception"].endswith("ValueError: the cause")


def test_lines_for_people() -> None:
    assert ConsoleLines().format(record(logging.INFO, "Stopping.", model="")).endswith(" Stopping.")
    warned = ConsoleLines().format(record(logging.WARNING, "It failed.", model="m"))
    assert warned.endswith(" warning: It failed. model=m")
    failed = ConsoleLines().format(record(logging.ERROR, "It failed.", exception=True))
    assert failed.splitlines()[-1] == "ValueError: the cause"
