"""Keys under a prefix, ranges of them, and which servers tell their progress in order."""

from __future__ import annotations

import pytest

from modelmesh.store.etcd_keys import Keys, Span
from modelmesh.store.etcd_watch import is_ordered
from modelmesh.wire.generated import etcd_pb2 as pb


def test_spans() -> None:
    keys = Keys("/p/")
    assert keys.span("registry/") == Span(b"/p/registry/", b"/p/registry0")
    assert keys.span("") == Span(b"/p/", b"/p0")
    assert keys.span("m", after="m/a") == Span(b"/p/m/a\x00", b"/p/n")
    assert keys.span("m", after="a") == Span(b"/p/m", b"/p/n")
    assert Keys("").span("") == Span(b"\x00", b"\x00")
    assert Keys("").span("", after="a") == Span(b"a\x00", b"\x00")


def test_what_is_no_text_is_left_out() -> None:
    keys = Keys("/p/")
    kvs = [
        pb.KeyValue(key=b"/p/\xff", value=b"x", mod_revision=2),
        pb.KeyValue(key="/p/ä".encode(), value=b"y", mod_revision=3),
    ]
    assert [(entry.key, entry.value, entry.revision) for entry in keys.entries(kvs)] == [("ä", b"y", 3)]
    events = [pb.Event(type=pb.Event.DELETE, kv=kv) for kv in kvs]
    assert [(change.key, change.value, change.revision) for change in keys.changes(events)] == [
        ("ä", None, 3)
    ]


@pytest.mark.parametrize(
    ("version", "ordered"),
    [
        ("3.4.23", False),
        ("3.4.31", True),
        ("3.5.4", False),
        ("3.5.13", True),
        ("3.6.0-rc.1", True),
        ("4.0.0", True),
        ("3.3.99", False),
        ("", False),
    ],
)
def test_which_versions_are_in_order(version: str, ordered: bool) -> None:
    assert is_ordered(version) is ordered
