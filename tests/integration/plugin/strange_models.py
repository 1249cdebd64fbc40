"""A model format as a plug-in, whose models do what a user's code may do. Imports no framework, so its workers start fast."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelmesh.worker.formats import names
from modelmesh.worker.formats.protocol import Claim, InputSpec, OutputSpec, SizeHints

LEAKED: list[bytes] = []


class Strange:
    """Doubles its input. `trouble` says what it does when the first value is above 100, `on_load` when it is loaded."""

    platform = "strange"
    inputs = (InputSpec("", "", (-1, 4)),)
    outputs = (OutputSpec("predict", "FP64", (-1, 4), True),)
    row_wise = True

    def __init__(self, trouble: str = "", on_load: str = "", weighs_bytes: int = 0) -> None:
        self.trouble, self.on_load = trouble, on_load
        self.weights = b"x" * weighs_bytes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _act(self.on_load)

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        (features,) = inputs.values()
        if features[0, 0] > 100:
            _act(self.trouble)
        return {"predict": features * 2}

    def owned(self) -> object:
        return self


def _act(trouble: str) -> None:
    what, _, how = trouble.partition(" ")
    if what == "abort":
        os.abort()
    elif what == "exit":
        os._exit(int(how))
    elif what == "sleep":
        time.sleep(float(how))
    elif what == "leak":
        LEAKED.append(b"x" * (int(how) << 20))
    elif what:
        raise RuntimeError(trouble)


class StrangeFormat:
    """Pickles of the class above."""

    name = extra = "strange"
    modules: tuple[str, ...] = ("strange_models",)
    well_known: tuple[str, ...] = ("model.strange",)
    hints = SizeHints(floor_bytes=4096, per_file_byte=1.0, peak_factor=2.0)

    def claims(self, files: Sequence[str]) -> Claim:
        return names.claim(files, self.well_known, (".strange",))

    def pick(self, files: Sequence[str]) -> str | None:
        return names.pick(files, self.well_known, (".strange",))

    def recognises(self, head: bytes) -> bool:
        return b"strange_models" in head

    def import_framework(self) -> None:
        """Nothing to import."""

    def load(self, path: Path) -> Strange:
        model: Strange = pickle.loads(path.read_bytes())
        return model
