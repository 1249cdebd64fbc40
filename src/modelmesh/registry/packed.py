"""An ordered map from str to bytes that costs little more than the bytes it holds.

A dict of 100,000 short records spends more memory on Python objects than on the records. Here neighbours share one bytes
object, a block; reading searches in it, writing rebuilds it, and paging in order comes for free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Final

BLOCK_ENTRIES: Final = 32
"""A block with more entries is split. Smaller ones are searched and rebuilt faster, larger ones waste less."""
_KEY: Final = b"\x00"
_VALUE: Final = b"\x01"


class PackedMap:
    """Keys must be free of U+0000 and U+0001, values of the byte 0; order is that of the keys' code points."""

    def __init__(self) -> None:
        self._firsts: list[bytes] = []
        self._blocks: list[bytes] = []
        self._counts: list[int] = []
        self._count = 0
        self._last = b""
        """The highest key: what is above it is absent, as most ids are that are registered in order."""

    def __len__(self) -> int:
        return self._count

    def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""
        encoded = key.encode()
        if not self._blocks or encoded > self._last:
            return None
        block = self._blocks[self._index(encoded)]
        start = block.find(b"%b%b%b" % (_KEY, encoded, _VALUE))
        if start < 0:
            return None
        start += len(encoded) + 2
        end = block.find(_KEY, start)
        return block[start:] if end < 0 else block[start:end]

    def update(self, changes: Mapping[str, bytes | None]) -> None:
        """Put values, delete keys whose value is None. Many changes at once cost less each when keys are close."""
        ordered = sorted((key.encode(), value) for key, value in changes.items())
        position = 0
        while position < len(ordered):
            index = self._index(ordered[position][0])
            beyond = self._firsts[index + 1] if index + 1 < len(self._firsts) else None
            entries = dict(_unpack(self._blocks[index])) if self._blocks else {}
            while position < len(ordered) and (beyond is None or ordered[position][0] < beyond):
                key, value = ordered[position]
                if value is None:
                    entries.pop(key, None)
                else:
                    entries[key] = value
                position += 1
            self._replace(index, sorted(entries.items()))
        self._last = _unpack(self._blocks[-1])[-1][0] if self._blocks else b""

    def scan(self, prefix: str = "", after: str = "", limit: int = 0) -> Iterator[tuple[str, bytes]]:
        """(key, value) in order, of keys with `prefix` and above `after`; at most `limit` of them (0: all). The map must not
        change meanwhile."""
        encoded, above = prefix.encode(), after.encode()
        left = limit or self._count
        for index in range(self._index(max(encoded, above)), len(self._blocks)):
            for key, value in _unpack(self._blocks[index]):
                if key < encoded or (above and key <= above):
                    continue
                if not left or not key.startswith(encoded):
                    return
                left -= 1
                yield key.decode(), value

    def count(self, prefix: str = "") -> int:
        """How many keys have `prefix`. Whole blocks are not looked into."""
        if not prefix:
            return self._count
        encoded = prefix.encode()
        total = 0
        for index in range(self._index(encoded), len(self._blocks)):
            if index + 1 < len(self._blocks) and all(
                first.startswith(encoded) for first in self._firsts[index : index + 2]
            ):
                total += self._counts[index]
                continue
            if self._firsts[index] > encoded and not self._firsts[index].startswith(encoded):
                break
            total += sum(key.startswith(encoded) for key, _ in _unpack(self._blocks[index]))
        return total

    def _index(self, key: bytes) -> int:
        """The block that holds the key, or would."""
        return max(bisect_right(self._firsts, key) - 1, 0)

    def _replace(self, index: int, entries: list[tuple[bytes, bytes]]) -> None:
        """Put sorted entries in the place of a block: as none, one or several. What is left of a small one joins the next."""
        end = index + 1
        if len(entries) < BLOCK_ENTRIES // 4 and end < len(self._blocks):
            entries = entries + _unpack(self._blocks[end])
            end += 1
        n_blocks = -(-len(entries) // BLOCK_ENTRIES)
        size = -(-len(entries) // n_blocks) if n_blocks else 1
        pieces = [entries[start : start + size] for start in range(0, len(entries), size)]
        self._count += len(entries) - sum(self._counts[index:end])
        self._firsts[index:end] = [piece[0][0] for piece in pieces]
        self._blocks[index:end] = [_pack(piece) for piece in pieces]
        self._counts[index:end] = [len(piece) for piece in pieces]


def _pack(entries: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b%b%b%b" % (_KEY, key, _VALUE, value) for key, value in entries])


def _unpack(block: bytes) -> list[tuple[bytes, bytes]]:
    pairs = []
    for item in block.split(_KEY)[1:]:
        key, _, value = item.partition(_VALUE)
        pairs.append((key, value))
    return pairs
