"""The ready file: where a started instance listens, for scripts. Written whole or not at all, removed at exit."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from modelmesh.errors import SettingsError


def write_ready_file(path: Path, *, grpc: str, rest: str, ops: str, peer: str = "") -> None:
    """`grpc` and `peer` are "host:port", `rest` and `ops` are URLs; without a port for other instances `peer` is left out. Raises
    SettingsError when it cannot be written."""
    ready: dict[str, object] = {"grpc": grpc, "rest": rest, "ops": ops, "pid": os.getpid()}
    if peer:
        ready["peer"] = peer
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(ready) + "\n")
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise SettingsError(f"--ready-file: {path} cannot be written: {error.strerror}.") from error


def remove_ready_file(path: Path) -> None:
    """Only if it is ours: another instance may have written its own meanwhile."""
    try:
        if json.loads(path.read_text()).get("pid") == os.getpid():
            path.unlink(missing_ok=True)
    except (OSError, ValueError, AttributeError):
        return
