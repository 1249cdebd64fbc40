"""What all instances remember of a model, as one story: their journals are asked, within a deadline."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from modelmesh.errors import ModelMeshError
from modelmesh.journal import Journal
from modelmesh.mesh.fleet import Fleet
from modelmesh.peers.protocol import Peers, Remembered

ENTRIES_MAX: Final = 500
"""Of one instance, and in a whole story: the newest."""
DEADLINE_S: Final = 2.0
"""Who is silent longer is told as not having answered."""


class Happened(NamedTuple):
    """An entry of the journal of an instance."""

    instance: str
    entry: Remembered


class Mute(NamedTuple):
    """An instance that could not be asked, and why."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class Story:
    """By time, as the clocks of the instances show it. `told`: the instances that answered. `cut`: there was more, which is
    older."""

    entries: Sequence[Happened]
    told: Sequence[str]
    mute: Sequence[Mute]
    cut: bool


class Recollection:
    """Of this instance and of the others; no peers: it is alone."""

    def __init__(self, me: str, journal: Journal, peers: Peers | None, fleet: Fleet | None) -> None:
        self._me = me
        self._journal = journal
        self._peers = peers
        self._fleet = fleet

    def here(self, names: Sequence[str], limit: int) -> list[Remembered]:
        """What the journal of this instance remembers of any of these: the newest, oldest first."""
        return [
            Remembered(entry.sequence, entry.wall_s, str(entry.did), entry.model, entry.reason, entry.numbers)
            for entry in self._journal.about(*names)[-limit:]
        ]

    async def everywhere(self, names: Sequence[str]) -> Story:
        """Ask all instances; at the latest after `DEADLINE_S` with what came."""
        told = {self._me: self.here(names, ENTRIES_MAX)}
        mute: list[Mute] = []
        if self._peers is not None:
            others = [peer.id for peer in self._fleet or ()]
            answers = await asyncio.gather(*(self._ask(self._peers, id, names) for id in others))
            for id, answer in zip(others, answers, strict=True):
                if isinstance(answer, str):
                    mute.append(Mute(id, answer))
                else:
                    told[id] = answer
        merged = list(
            heapq.merge(
                *([Happened(id, entry) for entry in entries] for id, entries in told.items()),
                key=lambda happened: (happened.entry.wall_s, happened.instance, happened.entry.sequence),
            )
        )
        cut = len(merged) > ENTRIES_MAX or any(len(entries) >= ENTRIES_MAX for entries in told.values())
        return Story(merged[-ENTRIES_MAX:], sorted(told), mute, cut)

    async def _ask(self, peers: Peers, id: str, names: Sequence[str]) -> list[Remembered] | str:
        """What it remembers, or why it did not say."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return list(await peers.recall(id, names, ENTRIES_MAX, DEADLINE_S))
        except ModelMeshError as error:
            return str(error)
        except TimeoutError:
            return f"It did not answer within {DEADLINE_S:g} s."
