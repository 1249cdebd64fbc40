"""What etcd's errors mean to us. etcd tells several things by one gRPC code, so its texts count too; they are part of its API
(https://pkg.go.dev/go.etcd.io/etcd/api/v3/v3rpc/rpctypes)."""

from __future__ import annotations

from typing import Final

import grpc
from grpc import StatusCode

from modelmesh.errors import LeaseLost, ModelMeshError, PayloadTooLarge, StoreUnavailable
from modelmesh.store.protocol import Compacted

_PASSING: Final = (
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.CANCELLED,
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
    StatusCode.ABORTED,
)
_NEVER_SENT: Final = ("failed to connect", "no leader")
_STALE_TOKEN: Final = ("revision of auth store is old", "user name is empty", "invalid auth token")


def text_of(error: grpc.aio.AioRpcError) -> str:
    """What was said, or at least the code."""
    return error.details() or error.code().name


def is_passing(error: grpc.aio.AioRpcError) -> bool:
    """Whether another endpoint, or the same one later, may answer the same call."""
    return error.code() in _PASSING or "too many requests" in text_of(error)


def was_not_applied(error: grpc.aio.AioRpcError) -> bool:
    """Whether a write that failed so has certainly changed nothing, and may be sent again."""
    return error.code() is StatusCode.UNAVAILABLE and any(
        said in text_of(error).lower() for said in _NEVER_SENT
    )


def is_stale_token(error: grpc.aio.AioRpcError) -> bool:
    """Whether the password has to be shown again: tokens expire, and simple ones end with the process that gave them."""
    return error.code() is StatusCode.UNAUTHENTICATED or any(said in text_of(error) for said in _STALE_TOKEN)


def is_too_large(error: grpc.aio.AioRpcError) -> bool:
    """Whether the call exceeds what etcd takes at once, or its answer what we do."""
    return "request is too large" in text_of(error) or "message larger than max" in text_of(error)


def is_refused(error: grpc.aio.AioRpcError) -> bool:
    """Whether user, password or rights are wrong, which no repetition heals."""
    return error.code() is StatusCode.PERMISSION_DENIED or "authentication failed" in text_of(error)


def translated(error: grpc.aio.AioRpcError, where: str) -> ModelMeshError | Compacted:
    """The error to raise instead; `where` names the etcd."""
    said = text_of(error)
    if error.code() is StatusCode.OUT_OF_RANGE and "compacted" in said:
        return Compacted(f"The etcd at {where} no longer keeps what was asked for: {said}.")
    if "lease not found" in said:
        return LeaseLost(f"The lease is not known to the etcd at {where} (any more); its keys are gone.")
    if "database space exceeded" in said:
        return StoreUnavailable(
            f"The etcd at {where} is full and takes no writes: compact and defragment it, then disarm its alarm."
        )
    if is_too_large(error):
        return PayloadTooLarge(
            f"The etcd at {where} takes no transaction as large as this: make the path or key shorter."
        )
    if is_refused(error):
        return StoreUnavailable(f"The etcd at {where} refuses us: {said}. {RIGHTS}")
    return StoreUnavailable(
        f"The etcd at {where} does not answer: {said}. If something was to be written, it is unknown whether it was."
    )


RIGHTS: Final = "Check userid and password, and that the user may read and write all keys under the prefix."
