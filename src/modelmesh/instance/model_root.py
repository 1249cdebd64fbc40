"""Which local paths may be registered: loading a model runs its code (a pickle is a program), so only what lies under
the model root, symbolic links followed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from modelmesh.errors import FailedPrecondition, InvalidInput
from modelmesh.mesh.control import Registration


class ModelRoot:
    """The check. Reads the disk (links are followed), so it belongs into a thread."""

    def __init__(self, root: Path | None) -> None:
        self._root = None if root is None else os.path.realpath(root)

    def admit(self, registration: Registration) -> Registration:
        """The registration with an absolute path; a relative one is taken from the root. The path need not exist yet. Raises
        FailedPrecondition for a path outside, InvalidInput for none or for what is no local path."""
        model, path = registration.id, registration.path
        if not path:
            raise InvalidInput(
                f'Model "{model}" needs a path: the file or folder of its artefact.', model=model
            )
        if path.startswith("file://"):
            path = path.removeprefix("file://")
        if "://" in path:
            raise InvalidInput(
                f'Model "{model}": only local paths can be loaded here, not "{path}"; fetch it first, then register its path.',
                model=model,
            )
        if "\0" in path:
            raise InvalidInput(f'Model "{model}": the path contains a zero byte.', model=model)
        absolute = path if self._root is None else str(Path(self._root) / path)
        if why := self.refusal(absolute):
            raise FailedPrecondition(f'Model "{model}": {why}', model=model)
        return replace(registration, path=absolute)

    def refusal(self, path: str) -> str:
        """Why the files at an absolute path must not be loaded, in a sentence; empty when they may."""
        if self._root is None:
            return (
                "local paths cannot be used, because this instance has no model root; start it with --model-root DIR (or serve a "
                "folder)."
            )
        real = os.path.realpath(path)
        if Path(path).is_absolute() and (real == self._root or real.startswith(self._root.rstrip("/") + "/")):
            return ""
        return (
            f"{path} does not lie under the model root {self._root}; move it there, or start the instance with "
            "another --model-root."
        )
