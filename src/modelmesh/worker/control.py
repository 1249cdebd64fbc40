"""What a worker and its supervisor say to each other, over one end of a socket pair each.

A message is four bytes of length (big-endian) and that many bytes of JSON. The supervisor sends numbered commands, the
worker one answer per command, in any order: loads and imports run beside unloads and measurements.
"""

from __future__ import annotations

import functools
import json
import socket
import struct
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

LENGTH: Final = struct.Struct(">I")
MESSAGE_BYTES_MAX: Final = 1 << 20


class Message:
    """Base of all messages; each class is known by its name on the wire."""

    _kinds: ClassVar[dict[str, type[Message]]] = {}

    def __init_subclass__(cls) -> None:
        Message._kinds[cls.__name__] = cls


@dataclass(frozen=True, slots=True)
class Serve(Message):
    """The first command: listen. Answered with Done once the socket accepts."""

    socket_path: str
    executing_path: str
    parent_pid: int
    batch_rows_max: int
    batch_bytes_max: int
    message_bytes_max: int
    stuck_after_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Import(Message):
    """Import a format's framework. Answered with Done or Refused."""

    format: str


@dataclass(frozen=True, slots=True)
class Load(Message):
    """Load a model and serve it. Answered with LoadDone, Refused or Changed. `content` is its content hash where known already:
    it is not computed again then. `size_bytes` is what a model of this content weighs, all in the heap, where that is known:
    it is not measured again then; else 0. `fingerprint` is that of the files meant; empty: whatever they are."""

    model: str
    handle: int
    format: str
    path: str
    content: str
    size_bytes: int = 0
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Unload(Message):
    """Stop serving a model, let its requests finish for `grace_s`, free it. Answered with Done, also when it is not here."""

    model: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Measure(Message):
    """Tell of the memory; give free pages back when more than `slack_max_bytes` of them are kept."""

    slack_max_bytes: int


@dataclass(frozen=True, slots=True)
class Stop(Message):
    """Finish what runs, for at most `grace_s`, and exit."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Done(Message):
    """A command is done."""


@dataclass(frozen=True, slots=True)
class Changed(Message):
    """The files are not those that were meant; nothing was loaded."""


@dataclass(frozen=True, slots=True)
class LoadDone(Message):
    """A model is served. `measured` is False when batches ran meanwhile: Measured.settled will tell. A size that
    was known comes back as it was, with a peak of 0."""

    size_bytes: int
    peak_bytes: int
    file_bytes: int
    """Of the size: what is mapped from files."""
    measured: bool
    load_s: float
    content: str
    base_bytes: int
    """What the worker itself grew by, when it was the first of its format here or imported modules."""
    sizing_s: float
    """What measuring took beside the load."""


@dataclass(frozen=True, slots=True)
class Measured(Message):
    """The worker's memory and work of the moment. `settled` are the models whose size was provisional, with their
    measured sizes."""

    in_use_bytes: int
    slack_bytes: int
    anon_bytes: int
    """The process's own memory, read while no batch ran."""
    busy_s: float
    """Seconds spent in models since the start."""
    batches: int
    settled: dict[str, int]
    ran_s: dict[str, float]
    """Seconds spent in each model since the last answer, where it was not next to nothing."""


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """A command failed with a gRPC code and a sentence."""

    code: int
    reason: str


def encode(number: int, message: Message) -> bytes:
    """A numbered message, framed."""
    kind: Any = type(message)
    values = {name: getattr(message, name) for name in _names(kind)}
    body = _ENCODER.encode([number, kind.__name__, values]).encode()
    return LENGTH.pack(len(body)) + body


def decode(body: bytes) -> tuple[int, Message]:
    """The number and message of a frame's body. Raises ValueError for anything else."""
    number, kind, values = json.loads(body)
    message_type: Any = Message._kinds.get(kind)
    if message_type is None or values.keys() != _names(message_type).keys():
        raise ValueError(f"an unknown control message: {kind}")
    return int(number), message_type(**values)


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


@functools.cache
def _names(message_type: Any) -> dict[str, None]:
    return dict.fromkeys(field.name for field in fields(message_type))


def receive(channel: socket.socket) -> tuple[int, Message] | None:
    """The next message, waited for; None when the other end is closed. Raises ValueError for a broken one."""
    head = _receive_exactly(channel, LENGTH.size)
    if head is None:
        return None
    (length,) = LENGTH.unpack(head)
    if length > MESSAGE_BYTES_MAX:
        raise ValueError(f"a control message of {length} bytes")
    body = _receive_exactly(channel, length)
    return None if body is None else decode(body)


def _receive_exactly(channel: socket.socket, length: int) -> bytes | None:
    parts: list[bytes] = []
    while length:
        try:
            part = channel.recv(length)
        except ConnectionError:
            return None
        if not part:
            return None
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
