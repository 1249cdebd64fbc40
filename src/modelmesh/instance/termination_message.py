"""The termination message: where Kubernetes reads why a container ended. Written when a start fails, or when a bug ends it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelmesh.settings import predecessor
from modelmesh.settings.sources import ENVIRONMENT_PREFIX
from modelmesh.settings.tree import Settings

_log = logging.getLogger("modelmesh")

DEFAULT: Final = Path("/dev/termination-log")
"""Where Kubernetes mounts it unless terminationMessagePath says otherwise."""
_BYTES_MAX: Final = 4096
"""Kubernetes reads no more (https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure)."""


def message_path(
    settings: Settings | None, flags: Mapping[str, object], default: Path = DEFAULT
) -> Path | None:
    """Where the message goes; None: nowhere. Without settings, because they are what is wrong, the flag and the variables are
    looked at alone."""
    if settings is not None:
        named: object = settings.lifecycle.termination_message
    else:
        _, older = predecessor.carried("termination_message", os.environ) or ("", "")
        named = (
            flags.get("termination_message")
            or os.environ.get(f"{ENVIRONMENT_PREFIX}TERMINATION_MESSAGE")
            or older
        )
    if named:
        return Path(str(named)).expanduser()
    return default if default.is_file() and os.access(default, os.W_OK) else None


def leave_message(sentence: str, path: Path | None) -> None:
    """Never raises: the sentence is on stderr too."""
    if path is None:
        return
    try:
        path.write_bytes(sentence.encode()[:_BYTES_MAX])
    except OSError as error:
        _log.error("The termination message %s cannot be written: %s.", path, error.strerror)
