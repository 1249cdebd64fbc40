"""The journal over HTTP: pages, and streams that follow it (server-sent events, or lines of JSON)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import islice
from typing import Final

from modelmesh.errors import QueueFull
from modelmesh.journal import Entry, Journal
from modelmesh.ops import schemas

FOLLOWERS_MAX: Final = 32
_LOOK_EVERY_S: Final = 0.2
_SIGN_OF_LIFE_S: Final = 15.0
_AT_ONCE: Final = 500


def page(journal: Journal, since: int, model: str, limit: int) -> schemas.JournalPage:
    """At most `limit` entries after `since`; with `model`, those about it."""
    matching = (entry for entry in journal.since(since) if not model or entry.model == model)
    entries = list(islice(matching, limit))
    return schemas.JournalPage.model_construct(
        entries=[schemas.JournalEntry.of(entry) for entry in entries],
        next_since=entries[-1].sequence if entries else since,
    )


class Followers:
    """Streams that end when their client leaves; their number is bounded."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._n_following = 0

    def stream(self, since: int, model: str, *, as_lines: bool) -> AsyncIterator[str]:
        """Entries after `since` and then as they come. Raises QueueFull when too many follow already."""
        if self._n_following >= FOLLOWERS_MAX:
            raise QueueFull(
                f"{FOLLOWERS_MAX} clients follow the journal already.", retry_after_s=_SIGN_OF_LIFE_S
            )
        return self._follow(since, model, as_lines)

    async def _follow(self, since: int, model: str, as_lines: bool) -> AsyncIterator[str]:
        self._n_following += 1
        try:
            silent_s = 0.0
            while True:
                for entry in islice(self._journal.since(since), _AT_ONCE):
                    since = entry.sequence
                    if not model or entry.model == model:
                        yield _written(entry, as_lines)
                        silent_s = 0.0
                if silent_s >= _SIGN_OF_LIFE_S:
                    yield "\n" if as_lines else ": \n\n"
                    silent_s = 0.0
                await asyncio.sleep(_LOOK_EVERY_S)
                silent_s += _LOOK_EVERY_S
        finally:
            self._n_following -= 1


def _written(entry: Entry, as_lines: bool) -> str:
    text = schemas.JournalEntry.of(entry).model_dump_json()
    return f"{text}\n" if as_lines else f"id: {entry.sequence}\ndata: {text}\n\n"
