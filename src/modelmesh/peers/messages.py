"""The values of `protocol` as messages of `wire/peers.proto`, and back; errors too, which keep their kind."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from modelmesh.errors import (
    WIRE,
    Code,
    InvalidInput,
    LoadFailed,
    ModelMeshError,
    Quarantined,
    RuntimeUnavailable,
    code_of,
)
from modelmesh.peers.protocol import Ask, Failed, Held, Load, Order, Provided, Remembered, Tally, Update
from modelmesh.policy.urgency import Why
from modelmesh.wire.generated import peers_pb2 as pb

SERVICE: Final = "modelmesh.peers.v1.Peers"
KIND: Final = "mm-error"
"""The trailer that names the class of an error."""
_WHOLE_MAX: Final = 1 << 63
_KINDS: Final = {kind.__name__: kind for kind in WIRE}
_OF_LOAD: Final = tuple(name for name in Load.__dataclass_fields__ if name != "tallies")


def to_update(update: Update) -> pb.Update:
    message = pb.Update(
        epoch=update.epoch, sequence=update.sequence, begins=update.begins, complete=update.complete
    )
    for held in update.held:
        message.held.add(**held._asdict())
    for failed in update.failed:
        message.failed.add(**{**failed._asdict(), "code": int(failed.code)})
    if update.load is not None:
        message.load.CopyFrom(pb.Load(**{name: getattr(update.load, name) for name in _OF_LOAD}))
        for tally in update.load.tallies:
            message.load.tallies.add(**tally._asdict())
    return message


def from_update(message: pb.Update) -> Update:
    return Update(
        epoch=message.epoch,
        sequence=message.sequence,
        begins=message.begins,
        complete=message.complete,
        held=tuple(
            Held(
                held.model, held.loaded, held.loading, held.size_bytes, held.load_ms, held.rate_per_s,
                held.last_used_wall_ms,
            )
            for held in message.held
        ),
        failed=tuple(
            Failed(failed.model, _code(failed.code), failed.message, failed.permanent, failed.expires_in_ms)
            for failed in message.failed
        ),
        load=_load(message.load) if message.HasField("load") else None,
    )  # fmt: skip


def _load(load: pb.Load) -> Load:
    tallies = [Tally(*(getattr(tally, name) for name in Tally._fields)) for tally in load.tallies]
    return Load(**{name: getattr(load, name) for name in _OF_LOAD}, tallies=tuple(tallies))


def _code(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN


def to_ask(asker: str, ask: Ask) -> pb.AskRequest:
    return pb.AskRequest(
        asker=asker,
        model=ask.model,
        need=ask.need,
        why=ask.why,
        rate_per_s=ask.rate_per_s,
        last_used_wall_ms=ask.last_used_wall_ms,
        tried=ask.tried,
        hops=ask.hops,
        until_used=ask.until_used,
        suspicion=ask.suspicion,
        execution_s=ask.execution_s,
        copies=ask.copies,
        worth_s=None if ask.worth_s == inf else ask.worth_s,
    )


def from_ask(message: pb.AskRequest, deadline_s: float) -> Ask:
    return Ask(
        model=message.model,
        deadline_s=deadline_s,
        need=Why(min(message.need, Why.PREWARM)),
        why=message.why,
        rate_per_s=message.rate_per_s,
        last_used_wall_ms=message.last_used_wall_ms,
        tried=tuple(message.tried),
        hops=message.hops,
        until_used=message.until_used,
        suspicion=message.suspicion,
        execution_s=message.execution_s,
        copies=max(message.copies, 1),
        worth_s=message.worth_s if message.HasField("worth_s") else inf,
    )


def to_provided(provided: Provided) -> pb.Provided:
    return pb.Provided(holder=provided.holder, epoch=provided.epoch, sequence=provided.sequence)


def from_provided(message: pb.Provided) -> Provided:
    return Provided(message.holder, message.epoch, message.sequence)


def to_refused(error: ModelMeshError) -> pb.Refused:
    return pb.Refused(
        kind=type(error).__name__,
        code=int(code_of(error)),
        message=error.message,
        retry_after_s=error.retry_after_s,
    )


def from_refused(refused: pb.Refused, model: str) -> ModelMeshError:
    retry_after_s = refused.retry_after_s if refused.HasField("retry_after_s") else None
    return error_of(refused.kind, _code(refused.code), refused.message, model, retry_after_s)


def to_recalled(entries: Sequence[Remembered]) -> pb.RecallReply:
    reply = pb.RecallReply()
    for entry in entries:
        told = reply.entries.add(
            sequence=entry.sequence,
            wall_s=entry.wall_s,
            did=entry.did,
            model=entry.model,
            reason=entry.reason,
        )
        for name, value in entry.numbers.items():
            number = told.numbers.add(name=name)
            if isinstance(value, str):
                number.text = value
            elif isinstance(value, int) and abs(value) < _WHOLE_MAX:
                number.whole = value
            else:
                number.real = value
    return reply


def from_recalled(reply: pb.RecallReply) -> list[Remembered]:
    return [
        Remembered(
            entry.sequence,
            entry.wall_s,
            entry.did,
            entry.model,
            entry.reason,
            {number.name: getattr(number, number.WhichOneof("value") or "whole") for number in entry.numbers},
        )
        for entry in reply.entries
    ]


def from_order(message: pb.OrderRequest) -> Order:
    """Raises InvalidInput for one of a later version."""
    try:
        return Order(message.order)
    except ValueError as error:
        raise InvalidInput(f'This version knows no order "{message.order}".') from error


def error_of(kind: str, code: Code, message: str, model: str, retry_after_s: float | None) -> ModelMeshError:
    """What the other raised. Of a kind that is not known here the code is kept."""
    known = _KINDS.get(kind)
    if known is LoadFailed or known is Quarantined:
        return known(message, code=code, model=model, retry_after_s=retry_after_s)
    if known is not None:
        return known(message, model=model, retry_after_s=retry_after_s)
    if code is Code.UNAVAILABLE:
        return RuntimeUnavailable(message, model=model, retry_after_s=retry_after_s)
    return LoadFailed(message, code=code, model=model, retry_after_s=retry_after_s)
