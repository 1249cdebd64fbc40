"""Shares, times and counts as people write them, on the command line and in what it prints."""

from __future__ import annotations

import re
from typing import Final

from modelmesh.cli.exits import CommandFailed, Exit

_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


def parse_share(option: str, text: str, *, full: bool = True) -> float:
    """`99%` or `0.99`; 1 only when `full`. Raises CommandFailed."""
    try:
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        share = -1.0
    if not (0.0 <= share <= 1.0 if full else 0.0 <= share < 1.0):
        raise CommandFailed(f"{option} {text!r} is not a share such as 99% or 0.99.", Exit.USAGE)
    return share


def parse_duration_s(option: str, text: str) -> float:
    """`90s`, `10min`, `2h`, `1d`; seconds without a unit. Raises CommandFailed."""
    match = _DURATION.fullmatch(text.lower())
    if match is None or (match[2] or "s") not in _UNIT_S:
        raise CommandFailed(
            f"{option} {text!r} is not a time: write seconds, or a number with s, min, h or d.", Exit.USAGE
        )
    return float(match[1]) * _UNIT_S[match[2] or "s"]


def counted(n: int, thing: str, things: str = "") -> str:
    """`1 model`, `2 models`; `things` is the plural when it is not made by an s."""
    return f"{n} {thing}" if n == 1 else f"{n} {things or thing + 's'}"
