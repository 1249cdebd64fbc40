"""Sizes as people write them: "500MiB", "2GB", "1048576", and "60%" where a share of the machine makes sense."""

from __future__ import annotations

import re
from typing import Final

_FACTOR: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
"""KB is a thousand and KiB is 1024 bytes (IEC 80000-13); Ki, Mi, … are how Kubernetes writes the latter."""

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*|%)\s*", re.IGNORECASE)


def parse_size(text: str, *, whole_bytes: int | None = None) -> int:
    """The number of bytes `text` says, more than 0. A share ("60%") is taken of `whole_bytes` and not allowed
    without it. Raises ValueError with the second half of a sentence ("is not a size: …")."""
    match = _SIZE.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match is None or (unit != "%" and unit not in _FACTOR):
        share = ", or a share such as 60%" if whole_bytes is not None else ""
        raise ValueError(f"is not a size: write bytes, or a number with KiB, MiB, GiB, KB, MB or GB{share}")
    if unit == "%":
        if whole_bytes is None:
            raise ValueError("is a share, but this size is not measured against anything: write bytes or MiB")
        if not 0 < float(match[1]) <= 100:
            raise ValueError("is not a share between 0 and 100%")
        size_bytes = int(whole_bytes * float(match[1]) / 100)
    else:
        size_bytes = int(float(match[1]) * _FACTOR[unit])
    if size_bytes <= 0:
        raise ValueError("is not a size above 0")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """A size for people: three digits and a binary unit, "0 B" for nothing, a sign for debts."""
    value = float(abs(size_bytes))
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{'-' if size_bytes < 0 else ''}{value:.{digits}f} {unit}"
