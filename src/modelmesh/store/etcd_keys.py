"""The keys of one service in an etcd shared with others: all of them under one prefix, which nobody above sees."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from modelmesh.store.protocol import Change, Entry, Revision
from modelmesh.wire.generated import etcd_pb2 as pb

log = logging.getLogger(__name__)

_ALL: Final = b"\x00"
"""As the end of a range: to the last key there is."""


@dataclass(frozen=True, slots=True)
class Span:
    """The keys from `key` to before `end`."""

    key: bytes
    end: bytes


class Keys:
    """Translates between our keys and etcd's."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self._told: set[bytes] = set()

    def encode(self, key: str) -> bytes:
        return self._prefix + key.encode()

    def span(self, prefix: str, after: str = "") -> Span:
        """The keys that begin with `prefix` and are above `after`."""
        first = self.encode(prefix)
        start = self.encode(after) + b"\x00" if after >= prefix and after else first
        return Span(start or b"\x00", _end_of(first))

    def entries(self, kvs: Iterable[pb.KeyValue]) -> list[Entry]:
        """Without those whose key is no UTF-8: they are none of ours."""
        return [
            Entry(key, kv.value, Revision(kv.mod_revision))
            for kv in kvs
            if (key := self._decode(kv.key)) is not None
        ]

    def changes(self, events: Iterable[pb.Event]) -> list[Change]:
        """As `entries`."""
        return [
            Change(
                key,
                None if event.type == pb.Event.DELETE else event.kv.value,
                Revision(event.kv.mod_revision),
            )
            for event in events
            if (key := self._decode(event.kv.key)) is not None
        ]

    def _decode(self, key: bytes) -> str | None:
        try:
            return key[len(self._prefix) :].decode()
        except UnicodeDecodeError:
            if len(self._told) < 10 and key not in self._told:
                self._told.add(key)
                log.warning("The key %r in etcd is not UTF-8 and is left alone.", key)
            return None


def _end_of(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else _ALL
