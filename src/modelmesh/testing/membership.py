"""Who is a member, as records in a store with a lease would say, and what each member sees of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from modelmesh.peers.protocol import Member

LEASE_S: Final = 10.0


class Watcher(Protocol):
    """A member as `Membership` sees it."""

    @property
    def me(self) -> Member: ...

    def record_is(self, id: str, member: Member | None) -> None:
        """The record of another member, or that there is none. Told again when nothing changed."""

    def records_are(self, members: Mapping[str, Member]) -> None:
        """All records there are, its own too."""


class Membership:
    """`delay` says how late a watcher hears of a change. A member that is cut off from the store hears nothing, and its record
    goes when its lease runs out."""

    def __init__(self, delay: Callable[[], float]) -> None:
        self._delay = delay
        self._records: dict[str, Member] = {}
        self._watchers: dict[str, Watcher] = {}
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        """Of those that do not keep their lease alive."""
        self._cut_off: set[str] = set()

    def join(self, watcher: Watcher) -> None:
        """It reads who is there, and writes its own record."""
        self._cut_off.discard(watcher.me.id)
        self._watchers[watcher.me.id] = watcher
        watcher.records_are(self._records)
        self._put(watcher.me)

    def update(self, member: Member) -> None:
        """Its record is to say something else."""
        if member.id not in self._cut_off:
            self._put(member)

    def leave(self, id: str) -> None:
        """It takes its record away; if it cannot, that goes by itself."""
        del self._watchers[id]
        if id not in self._cut_off:
            self._remove(id)
        self._cut_off.discard(id)

    def crash(self, id: str) -> None:
        """Its record goes by itself."""
        del self._watchers[id]
        self._cut_off.discard(id)
        self._let_expire(id)

    def cut(self, id: str) -> None:
        """It is cut off from the store."""
        if id in self._watchers and id not in self._cut_off:
            self._cut_off.add(id)
            self._let_expire(id)

    def mend(self, id: str) -> None:
        """It has the store back: it looks at who is there, and writes its record anew."""
        if id in self._cut_off:
            self._cut_off.discard(id)
            self._watchers[id].records_are(self._records)
            self._put(self._watchers[id].me)

    # --------------------------------------------------------------------------------------------------------

    def _put(self, member: Member) -> None:
        self._keep(member.id)
        if self._records.get(member.id) != member:
            self._records[member.id] = member
            self._changed(member.id)

    def _remove(self, id: str) -> None:
        self._keep(id)
        if self._records.pop(id, None) is not None:
            self._changed(id)

    def _changed(self, id: str) -> None:
        """Each watcher hears of it in its own time, and sees what is there then."""
        loop = asyncio.get_running_loop()
        for other, watcher in self._watchers.items():
            if other != id:
                loop.call_later(self._delay(), self._tell, watcher, id)

    def _tell(self, watcher: Watcher, id: str) -> None:
        me = watcher.me.id
        if self._watchers.get(me) is watcher and me not in self._cut_off:
            watcher.record_is(id, self._records.get(id))

    def _let_expire(self, id: str) -> None:
        if id in self._records and id not in self._expiries:
            loop = asyncio.get_running_loop()
            self._expiries[id] = loop.call_later(LEASE_S, self._remove, id)

    def _keep(self, id: str) -> None:
        if (expiry := self._expiries.pop(id, None)) is not None:
            expiry.cancel()
