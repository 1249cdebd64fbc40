"""Settings that may be changed while instances run: keys under `config/` in the store (design: section 7).

A value there wins over whatever an instance was started with, in all instances, for as long as it is there. The predecessor's
keys of this kind (reference mesh.md 2.6) are read as well, where there is something here for them to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple

from modelmesh.settings.setting import Setting
from modelmesh.settings.sources import described

DISABLE: Final = "disable"
LOGGER_LEVEL: Final = "logger_level"
_LOG4J: Final = {
    "all": "debug",
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "error": "error",
    "fatal": "error",
    "off": "error",
}
PREDECESSOR_IGNORES: Final = {
    "log_each_invocation": "calls are moved without being looked at one by one; a logger URI in payload_processors logs them",
    "send_destination_id": "where a request goes is decided anew in each instance it comes by",
    "scaleup_rpm_threshold": "copies follow measured load, not a count of requests",
}
"""Keys of the predecessor without effect here, and why."""


class Given(NamedTuple):
    """What the store says of a setting, as a user would write it, and under which name."""

    name: str
    text: str


@cache
def live_settings() -> Mapping[str, Setting]:
    """By name."""
    return {setting.name: setting for _, setting in described() if setting.live}


def given(stored: Mapping[str, str]) -> dict[str, Given]:
    """What the values under `config/` say, by setting. Our own names win over the predecessor's."""
    found: dict[str, Given] = {}
    if LOGGER_LEVEL in stored:
        level = stored[LOGGER_LEVEL].strip()
        found["log_level"] = Given(LOGGER_LEVEL, _LOG4J.get(level.lower(), level))
    names = live_settings()
    found.update({name: Given(name, text) for name, text in stored.items() if name in names})
    return found


def without_effect(stored: Mapping[str, str]) -> dict[str, str]:
    """The names under `config/` that change nothing here, and why."""
    known = {*live_settings(), LOGGER_LEVEL, DISABLE}
    return {
        name: PREDECESSOR_IGNORES.get(
            name, "there is no such setting that can be changed while instances run"
        )
        for name in stored
        if name not in known
    }


def disables(stored: Mapping[str, str]) -> bool:
    """Whether no instance may start: the predecessor's `disable` is there, and not `false`."""
    return stored.get(DISABLE, "false").strip().lower() != "false"
