"""Files that a setting names."""

from __future__ import annotations

from pathlib import Path

from modelmesh.errors import SettingsError


def read_bytes(path: Path, setting: str) -> bytes:
    """Raises SettingsError naming the setting."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror or error}.") from error


def read_text(path: Path, setting: str) -> str:
    """Of UTF-8. Raises SettingsError naming the setting."""
    try:
        return read_bytes(path, setting).decode()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{setting}: {path} is not UTF-8: {error}.") from error
