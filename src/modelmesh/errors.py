"""Every error a user can meet, on one page, and the one table of what each means on the wire.

    ModelMeshError
    ├── InvalidInput            the call is wrong: fix it
    │   └── PayloadTooLarge
    ├── ModelNotFound           no such model or vmodel
    ├── InstanceNotFound        no such instance in the mesh
    ├── AlreadyExists           registered with other attributes
    ├── FailedPrecondition      the state forbids it: a referenced model, a path outside the model root
    ├── Unsupported             this method or feature is not offered
    ├── NoCapacity              go elsewhere or later: memory, and what would have been enough
    │   ├── ModelTooLarge       never fits in this budget
    │   └── QueueFull           too many wait already
    ├── LoadTimeout             the load cannot be, or was not, done in time
    ├── LoadFailed              the runtime refused the model; carries its code and text
    │   └── Quarantined         the model killed its worker twice
    ├── RuntimeUnavailable      the model server is away
    ├── StoreUnavailable        the store does not answer
    │   ├── StaleRevision       a compare failed: read again
    │   └── LeaseLost
    ├── SettingsError           a wrong setting stops the start
    └── InvariantBroken         a bug of ours: please report

Domain errors know nothing of gRPC or HTTP; `WIRE` at the bottom does, and a test keeps it complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, Self


class Code(IntEnum):
    """The gRPC status codes (https://grpc.io/docs/guides/status-codes), by their numbers on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ModelMeshError(Exception):
    """The root. `str(error)` is a sentence for the user; `model` names the model concerned, or is empty."""

    def __init__(self, message: str, *, model: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.model = model
        self.retry_after_s = retry_after_s
        """When it is worth asking again, in seconds; None when unknown or never."""


class InvalidInput(ModelMeshError):
    """The call is malformed; the same call will fail again."""


class PayloadTooLarge(InvalidInput):
    """A message exceeds the size limit."""


class ModelNotFound(ModelMeshError):
    """No model or vmodel has this name."""

    @classmethod
    def named(cls, name: str, *, what: Literal["model", "vmodel"] = "model", version: str = "") -> Self:
        """The error of a name that is not registered. Clients of the predecessor compare the first words."""
        asked = f"{name}, version {version}" if version else name
        see = "modelmesh list" if what == "model" else "modelmesh vmodel list"
        return cls(f"{what} not found: {asked}; see what is registered with: {see}", model=name)


class InstanceNotFound(ModelMeshError):
    """No instance of the mesh has this id."""

    @classmethod
    def named(cls, id: str) -> Self:
        """The error of an id that is no instance's."""
        return cls(f'There is no instance "{id}" in this mesh; see who is there with: modelmesh instances')


class AlreadyExists(ModelMeshError):
    """The id is registered with other attributes."""


class FailedPrecondition(ModelMeshError):
    """The state of the system forbids the call until something else changes."""


class Unsupported(ModelMeshError):
    """This method or feature is not offered here."""


class NoCapacity(ModelMeshError):
    """There is no room now; later or elsewhere there may be."""


class ModelTooLarge(NoCapacity):
    """The model is larger than the whole budget: waiting does not help."""


class QueueFull(NoCapacity):
    """More requests wait than the bounds allow."""


class LoadTimeout(ModelMeshError):
    """The load was not done in time, or cannot be."""


class LoadFailed(ModelMeshError):
    """The runtime could not load the model. `code` is the runtime's own and decides whether it is permanent."""

    def __init__(
        self, message: str, *, code: Code = Code.INTERNAL, model: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, model=model, retry_after_s=retry_after_s)
        self.code = code

    @property
    def permanent(self) -> bool:
        """Whether trying again with the same artefact is pointless (design: a bad artefact)."""
        return self.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION)


class Quarantined(LoadFailed):
    """The model killed its worker twice and is kept away for a while."""


class RuntimeUnavailable(ModelMeshError):
    """The model server is away or starting."""


class StoreUnavailable(ModelMeshError):
    """The store does not answer; nothing was changed, or it is unknown whether it was."""


class StaleRevision(StoreUnavailable):
    """A compared key changed meanwhile: read again and retry."""


class LeaseLost(StoreUnavailable):
    """The lease ran out and its keys are gone."""


class SettingsError(ModelMeshError):
    """A setting is wrong; the sentence names it."""


class InvariantBroken(ModelMeshError):
    """A bug of ours. Please report it with the journal."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What an error is on the wire. `retry_safe`: the same call may succeed later, unchanged."""

    grpc: Code
    http: int
    retry_safe: bool


WIRE: Final[dict[type[ModelMeshError], Wire]] = {
    InvalidInput: Wire(Code.INVALID_ARGUMENT, 400, False),
    PayloadTooLarge: Wire(Code.RESOURCE_EXHAUSTED, 413, False),
    ModelNotFound: Wire(Code.NOT_FOUND, 404, False),
    InstanceNotFound: Wire(Code.NOT_FOUND, 404, False),
    AlreadyExists: Wire(Code.ALREADY_EXISTS, 409, False),
    FailedPrecondition: Wire(Code.FAILED_PRECONDITION, 412, False),
    Unsupported: Wire(Code.UNIMPLEMENTED, 501, False),
    NoCapacity: Wire(Code.RESOURCE_EXHAUSTED, 503, True),
    ModelTooLarge: Wire(Code.RESOURCE_EXHAUSTED, 507, False),
    QueueFull: Wire(Code.RESOURCE_EXHAUSTED, 429, True),
    LoadTimeout: Wire(Code.DEADLINE_EXCEEDED, 504, True),
    LoadFailed: Wire(Code.INTERNAL, 500, False),
    Quarantined: Wire(Code.FAILED_PRECONDITION, 412, True),
    RuntimeUnavailable: Wire(Code.UNAVAILABLE, 503, True),
    StoreUnavailable: Wire(Code.UNAVAILABLE, 503, True),
    StaleRevision: Wire(Code.ABORTED, 409, True),
    LeaseLost: Wire(Code.UNAVAILABLE, 503, True),
    SettingsError: Wire(Code.INVALID_ARGUMENT, 400, False),
    InvariantBroken: Wire(Code.INTERNAL, 500, False),
}

HTTP_OF_CODE: Final[dict[Code, int]] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 412,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""The HTTP status of a bare gRPC code, as the data plane answers REST calls; `rust/relay` holds the same table
and a test compares them. PayloadTooLarge is the one exception: 413."""


def code_of(error: ModelMeshError) -> Code:
    """The gRPC code of an error: a failed load carries the runtime's own, all others are in `WIRE`."""
    if isinstance(error, LoadFailed) and not isinstance(error, Quarantined):
        return error.code
    return WIRE[type(error)].grpc


def http_status_of(error: ModelMeshError) -> int:
    """The HTTP status of an error, by the same table."""
    if isinstance(error, LoadFailed) and not isinstance(error, Quarantined):
        return HTTP_OF_CODE[error.code]
    return WIRE[type(error)].http
