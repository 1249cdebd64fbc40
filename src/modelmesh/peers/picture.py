"""What this instance holds, as the others are told: the whole of it, and what changed since they heard last."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Final

from modelmesh.peers.protocol import Failed, Held, Load, Update

PIECE: Final = 1000
"""Copies in one piece of a snapshot, or of what changed."""
LOG_MAX: Final = 20_000
"""Changes kept for those that were away for a moment; who missed more is told everything anew."""
HEARTBEAT_S: Final = 0.25
GATHER_S: Final = 0.02
"""What changes within so long is told together, mostly a load that begins and is done, because a message costs every instance a
good part of a miss. Nobody waits for such news: whoever asked for the load has its answer."""


class Picture:
    """One owner, the event loop. `announce` never waits; a follower that reads slowly gets fewer, larger pieces."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.sequence = 0
        self._held: dict[str, Held] = {}
        self._failed: dict[str, Failed] = {}
        self._load: Load | None = None
        self._load_at = 0
        self._log: deque[tuple[int, Held | Failed]] = deque(maxlen=LOG_MAX)
        self._changed = asyncio.Event()
        self._waking: asyncio.TimerHandle | None = None
        """Tells the followers soon of what was announced since it was set."""
        self._closed = False

    def announce(
        self, held: Sequence[Held] = (), failed: Sequence[Failed] = (), load: Load | None = None
    ) -> int:
        """Take changes in. Returns the sequence of the newest."""
        for copy in held:
            self._add(copy)
            if copy.loaded or copy.loading:
                self._held[copy.model] = copy
            else:
                self._held.pop(copy.model, None)
        for failure in failed:
            self._add(failure)
            if failure.expires_in_ms:
                self._failed[failure.model] = failure
            else:
                self._failed.pop(failure.model, None)
        if load is not None:
            self._load, self._load_at = load, self._load_at + 1
        if self._waking is None:
            self._waking = asyncio.get_running_loop().call_later(GATHER_S, self._wake)
        return self.sequence

    def _add(self, change: Held | Failed) -> None:
        self.sequence += 1
        self._log.append((self.sequence, change))

    def close(self) -> None:
        """End all followers' streams."""
        self._closed = True
        if self._waking is not None:
            self._waking.cancel()
        self._wake()

    def _wake(self) -> None:
        self._waking = None
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def follow(self, epoch: int, sequence: int) -> AsyncIterator[Update]:
        """All that is told, from after (`epoch`, `sequence`) on where that is possible, else from the beginning; something at
        least every `HEARTBEAT_S`. Ends when closed."""
        if epoch != self.epoch or not self._reaches_back_to(sequence):
            sequence = 0
            async for update in self._snapshot():
                sequence = update.sequence
                yield update
        load_at = 0
        while not self._closed:
            changed = self._changed
            if not self._reaches_back_to(sequence):
                async for update in self._snapshot():
                    sequence = update.sequence
                    yield update
                continue
            update = self._since(sequence)
            if self._load_at != load_at:
                load_at, update = self._load_at, replace(update, load=self._load)
            yield update
            sequence = update.sequence
            if sequence < self.sequence:
                continue
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await changed.wait()
            except TimeoutError:
                continue

    def _reaches_back_to(self, sequence: int) -> bool:
        oldest = self._log[0][0] if self._log else self.sequence + 1
        return oldest - 1 <= sequence <= self.sequence

    def _since(self, sequence: int) -> Update:
        """The next piece of changes; of several of one model only the last counts."""
        held: dict[str, Held] = {}
        failed: dict[str, Failed] = {}
        skip = len(self._log) - (self.sequence - sequence)
        reached = sequence
        for index in range(skip, min(len(self._log), skip + PIECE)):
            reached, change = self._log[index]
            if isinstance(change, Held):
                held[change.model] = change
            else:
                failed[change.model] = change
        return Update(self.epoch, reached, held=tuple(held.values()), failed=tuple(failed.values()))

    async def _snapshot(self) -> AsyncIterator[Update]:
        """Everything as it is now, in pieces. What changes meanwhile follows as changes."""
        sequence, held = self.sequence, list(self._held.values())
        begins = Update(
            self.epoch,
            sequence,
            begins=True,
            complete=len(held) <= PIECE,
            held=tuple(held[:PIECE]),
            failed=tuple(self._failed.values()),
            load=self._load,
        )
        yield begins
        for start in range(PIECE, len(held), PIECE):
            complete = start + PIECE >= len(held)
            yield Update(self.epoch, sequence, complete=complete, held=tuple(held[start : start + PIECE]))
