"""The Peers protocol over gRPC and the store: membership by leased records, a link to each other member."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from modelmesh.errors import RuntimeUnavailable
from modelmesh.peers.dialling import Dial, dial
from modelmesh.peers.link import Link
from modelmesh.peers.members import Members, encode
from modelmesh.peers.picture import Picture
from modelmesh.peers.protocol import (
    Ask,
    Failed,
    Gone,
    Held,
    Hosted,
    Joined,
    Load,
    Member,
    News,
    Order,
    Provided,
    Remembered,
)
from modelmesh.store.presence import Presence
from modelmesh.store.protocol import Store

LEASE_S: Final = 10.0
HEAR_S: Final = 5.0
"""How long a start waits until all others were heard, or turn out not to be there."""

log = logging.getLogger(__name__)


class ConnectedPeers:
    """Implements `peers.protocol.Peers`. `picture` and `hosted` are what the peer service serves to the others."""

    def __init__(self, store: Store, me: Member, connect: Dial = dial) -> None:
        self.picture = Picture(me.epoch)
        self.hosted: Hosted | None = None
        """Whom the others' questions reach; None until started, and from the stop on."""
        self._me = me
        self._connect = connect
        self._members = Members(store, self._member_changed)
        self._presence = Presence(store, LEASE_S)
        self._links: dict[str, Link] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._leased: set[str] = set()
        self._left: dict[str, int] = {}
        """Epochs of those that said goodbye: their records may outlive them a little."""
        self._news: list[News] = []
        self._arrived = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._reachable = asyncio.Event()
        if me.address:
            self._reachable.set()

    @property
    def me(self) -> Member:
        """See `Peers.me`."""
        return self._me

    @property
    def others(self) -> list[Member]:
        """Those that the store knows now."""
        return [member for id, member in self._members.known.items() if id != self._me.id]

    # --- life -----------------------------------------------------------------------------------------------

    def reachable_at(self, address: str) -> None:
        """Where the others reach this instance, when that was not known from the first."""
        self._me = replace(self._me, address=address)
        self._reachable.set()

    async def start(self, hosted: Hosted) -> None:
        """See `Peers.start`. Waits until the address is known. Raises StoreUnavailable."""
        self.hosted = hosted
        await self._reachable.wait()
        await self._members.read()
        await self._presence.start({self._members.key(self._me.id): encode(self._me)})
        self._watching = asyncio.create_task(self._members.follow(), name="members")
        hearing = [asyncio.create_task(link.met.wait()) for link in self._links.values()]
        if hearing:
            await asyncio.wait(hearing, timeout=HEAR_S)
        for task in hearing:
            task.cancel()
        await asyncio.gather(*hearing, return_exceptions=True)

    async def update_member(self, **changes: object) -> None:
        """See `Peers.update_member`."""
        fields: dict[str, Any] = dict(changes)
        self._me = replace(self._me, **fields)
        if self._watching is None:
            return  # the start tells it
        self._presence.put(self._members.key(self._me.id), encode(self._me))

    async def stop(self) -> None:
        """See `Peers.stop`."""
        self.hosted = None
        self.picture.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for id in list(self._links):
            self._drop(id)
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._presence.stop()

    # --- news -----------------------------------------------------------------------------------------------

    async def next_news(self) -> list[News]:
        """See `Peers.next_news`."""
        await self._arrived.wait()
        self._arrived.clear()
        news, self._news = self._news, []
        return news

    def _tell(self, news: News) -> None:
        """What a link heard. An instance without a lease is gone as soon as it is silent, too."""
        self._news.append(news)
        self._arrived.set()
        id = news.member.id if isinstance(news, Joined) else news.id
        link = self._links.get(id)
        if isinstance(news, Gone) and link is not None:
            self._left[id] = link.member.epoch
            self._drop(id)
        elif link is not None and link.silent and id not in self._leased:
            self._news.append(Gone(id))
            self._drop(id)

    def _member_changed(self, id: str, member: Member | None) -> None:
        if id == self._me.id:
            if member is not None and member.epoch > self._me.epoch:
                log.error("Another process calls itself %s and started later: give each its own id.", id)
            return
        link = self._links.get(id)
        if member is None:
            self._leased.discard(id)
            if link is not None and link.silent:
                self._news.append(Gone(id))
                self._arrived.set()
                self._drop(id)
            return
        self._leased.add(id)
        if self._left.get(id) == member.epoch:
            return
        if link is not None and (link.member.epoch, link.member.address) != (member.epoch, member.address):
            self._news.append(Gone(id))
            self._drop(id)
            link = None
        if link is None:
            link = self._links[id] = Link(self._me.id, member, self._tell, self._connect)
            self._following[id] = asyncio.create_task(link.run(), name=f"peer {id}")
        link.member = member
        self._news.append(Joined(member))
        self._arrived.set()

    def _drop(self, id: str) -> None:
        link, task = self._links.pop(id), self._following.pop(id)

        async def close() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await link.close()

        closing = asyncio.create_task(close(), name=f"leave {id}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    # --- telling and asking ---------------------------------------------------------------------------------

    def announce(
        self, held: Sequence[Held] = (), failed: Sequence[Failed] = (), load: Load | None = None
    ) -> int:
        """See `Peers.announce`."""
        return self.picture.announce(held, failed, load)

    def reached(self, id: str, reached: bool) -> None:
        """See `Peers.reached`."""
        link = self._links.get(id)
        if link is not None:
            link.reached(reached)

    async def provide(self, id: str, ask: Ask) -> Provided:
        """See `Peers.provide`."""
        return await self._link(id, ask.model).provide(ask)

    async def load(self, id: str, ask: Ask) -> Provided:
        """See `Peers.load`."""
        return await self._link(id, ask.model).load(ask)

    async def unload(self, id: str, model: str, why: str) -> None:
        """See `Peers.unload`."""
        await self._link(id, model).unload(model, why)

    async def recall(
        self, id: str, names: Sequence[str], limit: int, deadline_s: float
    ) -> Sequence[Remembered]:
        """See `Peers.recall`."""
        return await self._link(id).recall(names, limit, deadline_s)

    async def order(self, id: str, order: Order) -> None:
        """See `Peers.order`."""
        await self._link(id).order(order)

    def trouble(self, id: str) -> str:
        """See `Peers.trouble`."""
        link = self._links.get(id)
        return "" if link is None else link.trouble

    def _link(self, id: str, model: str = "") -> Link:
        link = self._links.get(id)
        if link is None:
            raise RuntimeUnavailable(f"The instance {id} is not known here, or gone.", model=model)
        return link
