"""The messages between a worker and its supervisor."""

from __future__ import annotations

import json
import socket

import pytest

from modelmesh.worker import control
from modelmesh.worker.control import (
    Changed,
    Done,
    Import,
    Load,
    LoadDone,
    Measure,
    Measured,
    Message,
    Refused,
    Serve,
    Stop,
    Unload,
    decode,
    encode,
    receive,
)

MESSAGES: list[Message] = [
    Serve("/tmp/a.sock", "/tmp/a.run", 1, 256, 1 << 20, 1 << 24),
    Import("sklearn"),
    Load("iris@1", 7, "sklearn", "/models/ïris", ""),
    Changed(),
    Unload("iris@1", 30.0),
    Measure(1 << 20),
    Stop(5.0),
    Done(),
    LoadDone(1, 2, 0, True, 0.5, "abc", 7, 0.1),
    Measured(1, 2, 3, 0.5, 4, {"iris": 4}, {"iris": 0.5}),
    Refused(3, "No."),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode(42, message))
        assert receive(theirs) == (42, message)


def test_every_message_is_covered() -> None:
    assert {type(message).__name__ for message in MESSAGES} == set(Message._kinds)


def test_messages_in_pieces_are_put_together() -> None:
    ours, theirs = socket.socketpair()
    frames = encode(1, Import("onnx")) + encode(2, Done())
    with ours, theirs:
        for byte in frames:
            ours.sendall(bytes([byte]))
        assert receive(theirs) == (1, Import("onnx"))
        assert receive(theirs) == (2, Done())


@pytest.mark.parametrize("keep", [0, 2, 10])
def test_a_closed_channel_is_told_by_none(keep: int) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(encode(1, Import("onnx"))[:keep])
        assert receive(theirs) is None


def test_a_message_beyond_the_limit_is_refused_unread() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(control.LENGTH.pack(control.MESSAGE_BYTES_MAX + 1))
        with pytest.raises(ValueError, match="control message of"):
            receive(theirs)


@pytest.mark.parametrize(
    "body",
    [
        [1, "Import", {}],
        [1, "Import", {"format": "x", "more": 1}],
        [1, "Message", {}],
        [1, "Nothing", {}],
        {},
        5,
    ],
)
def test_an_unknown_message_is_refused(body: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        decode(json.dumps(body).encode())
