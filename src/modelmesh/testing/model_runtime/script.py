"""What a scripted model server does: per model, and as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from modelmesh.errors import Code
from modelmesh.wire.generated import model_runtime_pb2

MIB: Final = 1 << 20
FORGOTTEN: Final = {
    "plain": (Code.NOT_FOUND, "{} is not here"),
    "triton": (Code.UNAVAILABLE, "Request for unknown model: '{}' is not found"),
    "triton-versions": (Code.UNAVAILABLE, "Request for unknown model: '{}' has no available versions"),
    "mlserver": (Code.INVALID_ARGUMENT, "Model {} not found"),
}
"""How servers say that they do not have a model (reference mesh.md 8.5)."""


@dataclass(slots=True)
class Script:
    """What happens with a model. Durations in seconds; an error is a code and a text, None is none."""

    load_s: float = 0.0
    load_error: tuple[Code, str] | None = None
    """Loading fails with it after `load_s`; `failing_loads` bounds how often, −1: always."""
    failing_loads: int = -1
    unload_s: float = 0.0
    unload_error: tuple[Code, str] | None = None
    failing_unloads: int = -1
    size_bytes: int = MIB
    """What it weighs, as far as the server's own capacity goes."""
    told_bytes: int | None = None
    """What loading says that it weighs; None: the truth, 0: ask modelSize."""
    sized_bytes: int | None = None
    """What modelSize says; None: the truth."""
    size_s: float = 0.0
    size_error: tuple[Code, str] | None = None
    predicted_bytes: int | None = None
    """What predictModelSize says; None: the truth."""
    max_concurrency: int = 0
    infer_s: float = 0.0
    infer_error: tuple[Code, str] | None = None
    kills_server: bool = False
    """The server dies while it loads."""


@dataclass(slots=True)
class Call:
    """One call of the runtime's own service, as it came."""

    method: str
    model: str
    type: str = ""
    path: str = ""
    key: str = ""


@dataclass(slots=True)
class Faults:
    """What is wrong with the server as a whole. May be changed while it runs."""

    status: int = model_runtime_pb2.RuntimeStatusResponse.READY
    """What runtimeStatus says once `starting` answers were STARTING."""
    starting: int = 0
    status_error: tuple[Code, str] | None = None
    predicts: bool = True
    """Else predictModelSize is UNIMPLEMENTED."""
    predict_s: float = 0.0
    refuses_beyond_capacity: bool = False
    """Loads that do not fit into `capacity_bytes` are RESOURCE_EXHAUSTED."""
    forgotten: str = "plain"
    """How inference says that a model is not here: one of `FORGOTTEN`."""
    unload_unknown: Code = Code.OK
    """The answer to unloading what is not here."""
    keeps_models: bool = False
    """runtimeStatus does not purge: a server that breaks the contract."""


def parse_script(fields_given: Mapping[str, Any]) -> Script:
    """From JSON: the fields of `Script`, an error being ["CODE", "text"]. Raises ValueError with a sentence."""
    known = {each.name for each in fields(Script)}
    if unknown := sorted(set(fields_given) - known):
        raise ValueError(f"{', '.join(unknown)}: a script has {', '.join(sorted(known))}.")
    made = dict(fields_given)
    for name in ("load_error", "unload_error", "size_error", "infer_error"):
        if made.get(name) is not None:
            code, text = made[name]
            made[name] = (Code[code], text)
    return Script(**made)
