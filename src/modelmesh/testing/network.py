"""A network of fake instances: delays, reordering between instances, partitions, silence, lateness and crashes, in virtual time.

    network = Network(random.Random(1))
    peers = network.join(Member("a", 1, "a:1"), dataplane)

What `peers.protocol` promises, `FakePeers` keeps: an instance is gone when its lease is gone *and* its connection silent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from modelmesh.errors import LoadTimeout, RuntimeUnavailable
from modelmesh.peers.protocol import (
    Ask,
    Back,
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
    Silent,
    Told,
    Update,
)
from modelmesh.policy.urgency import Why
from modelmesh.testing.dataplane import FakeDataPlane
from modelmesh.testing.membership import Membership

DOUBT_S: Final = 0.25
"""One that is suspected and asked all the same has so long to answer."""
SILENT_S: Final = 0.75
"""Three pings missed."""
ORDER_S: Final = 5.0

T = TypeVar("T")


class Network:
    """Who can reach whom. A frozen instance (as by SIGSTOP) neither hears nor answers, but its connections stay."""

    def __init__(self, rng: random.Random, delay_s: tuple[float, float] = (0.0002, 0.002)) -> None:
        self._rng = rng
        self.delay_s = delay_s
        self.spikes = 0.0
        """Share of what is said that takes a hundred times as long."""
        self.instances: dict[str, FakePeers] = {}
        """By id, in their present lives; crashed ones are out."""
        self.members = Membership(self.delay)
        self._cut: set[frozenset[str]] = set()
        self.frozen: set[str] = set()
        self._late_until_s: dict[str, float] = {}
        self._mended = asyncio.Event()

    def join(self, member: Member, dataplane: FakeDataPlane) -> FakePeers:
        """The peers of a new instance; it is a member after `start`."""
        peers = FakePeers(self, member, dataplane)
        dataplane.network = Reach(self, member.id)
        return peers

    def delay(self) -> float:
        delay_s = self._rng.uniform(*self.delay_s)
        return 100.0 * delay_s if self.spikes and self._rng.random() < self.spikes else delay_s

    def reaches(self, source: str, target: str) -> bool:
        """Whether what one says arrives at the other and is answered."""
        return target in self.instances and self.passes(source, target)

    def passes(self, source: str, target: str) -> bool:
        """Whether nothing keeps them from each other."""
        return (not self._cut or frozenset((source, target)) not in self._cut) and (
            not self.frozen or not {source, target} & self.frozen
        )

    def late_s(self, *ids: str) -> float:
        """For how long from now on the event loop of one of these stands still."""
        until_s = max(self._late_until_s.get(id, 0.0) for id in ids)
        return max(until_s - asyncio.get_running_loop().time(), 0.0)

    async def go_on(self, *ids: str) -> None:
        """Return when the event loops of all these run."""
        if late_s := self.late_s(*ids):
            await asyncio.sleep(late_s)

    # --- the script -----------------------------------------------------------------------------------------

    def hold_up(self, id: str, for_s: float) -> None:
        """The event loop of an instance stands still, as on a busy machine, until then or `mend`: it takes nothing in and says
        nothing. It goes on here, though; and so does its data plane, so nobody suspects it: `for_s` is to be below 5 s."""
        self._late_until_s[id] = asyncio.get_running_loop().time() + for_s

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between two instances, until `mend`. Both notice by silence."""
        self._cut.add(frozenset((one, other)))
        self._watch(one, other)

    def mend(self) -> None:
        """All partitions end, all instances go on."""
        thawed, self.frozen = self.frozen, set()
        self._cut.clear()
        self._late_until_s.clear()
        self._mended.set()
        self._mended = asyncio.Event()
        for id in sorted(thawed):
            self.members.mend(id)
        for one in self.instances.values():
            one.hear_again()

    async def reached(self, source: str, target: str, within_s: float) -> bool:
        """Wait until what one says arrives at the other, as a connection does that is not given up, and is taken in there.
        Whether it was in time, and the other lives."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while target in self.instances and not self.reaches(source, target):
                    await self._mended.wait()
                await self.go_on(target)
                return self.reaches(source, target)
        return False

    def freeze(self, id: str) -> None:
        """An instance stops as by SIGSTOP, until `mend`. Its own loop goes on here, but nothing of it reaches anybody, not even
        the store."""
        self.frozen.add(id)
        self.members.cut(id)
        for other in list(self.instances):
            if other != id:
                self._watch(id, other)

    def _watch(self, one: str, other: str) -> None:
        loop = asyncio.get_running_loop()
        for source, target in ((one, other), (other, one)):
            if source in self.instances:
                loop.call_later(SILENT_S, self.instances[source].look_at, target)

    def crash(self, id: str) -> None:
        """An instance dies: connections break at once, its lease runs out later."""
        dead = self.instances.pop(id, None)
        if dead is None:
            return
        dead.die()
        self.members.crash(id)
        for other in self.instances.values():
            other.connection_broke(dead.me)


class Reach:
    """What the data plane of one instance sees of the others: `dataplane.Wire`."""

    def __init__(self, network: Network, me: str) -> None:
        self._network = network
        self._me = me

    def delay(self) -> float:
        return self._network.delay()

    def dial(self, address: str) -> FakeDataPlane | None:
        for id, peers in self._network.instances.items():
            if peers.me.address == address and self._network.reaches(self._me, id):
                return peers.dataplane
        return None


@dataclass(slots=True)
class _Link:
    """To another instance in one life."""

    member: Member
    silent: bool = True
    told_silent: bool = False


class FakePeers:
    """`peers.protocol.Peers` of one instance in one life; what it does about records and silence is what `peers.connected`
    does."""

    def __init__(self, network: Network, member: Member, dataplane: FakeDataPlane) -> None:
        self._network = network
        self._me = member
        self.dataplane = dataplane
        self._hosted: Hosted | None = None
        self._sequence = 0
        self._held: dict[str, Held] = {}
        self._failed: dict[str, tuple[Failed, float]] = {}
        self._load: Load | None = None
        self._news: list[News] = []
        self._wake = asyncio.Event()
        self._links: dict[str, _Link] = {}
        self._leased: set[str] = set()
        """Those with a record, as far as known."""
        self._left: dict[str, int] = {}
        """Epochs of those that said goodbye: their records may outlive them a little."""
        self._heard_s: dict[str, float] = {}
        """When what an instance said arrives last: what one says stays in order, what several say does not."""
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.asked: list[tuple[str, str, Ask]] = []
        """(kind, asker, ask) of all that was asked of this instance."""
        self.dead = False

    @property
    def me(self) -> Member:
        return self._me

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self, hosted: Hosted) -> None:
        self._hosted = hosted
        self._network.instances[self.me.id] = self
        self._network.members.join(self)
        await asyncio.sleep(3 * self._network.delay())

    async def stop(self) -> None:
        if self.dead:
            return
        self.die()
        if self._network.instances.get(self.me.id) is self:  # else its next life has begun
            del self._network.instances[self.me.id]
            self._network.members.leave(self.me.id)
        for other in self._network.instances.values():
            if self._network.passes(self.me.id, other.me.id):
                other.said_goodbye(self.me)
            else:
                other.connection_broke(self.me)

    def die(self) -> None:
        """No call of it goes on."""
        self.dead = True
        for task in list(self._tasks):
            task.cancel()

    def trouble(self, id: str) -> str:
        link = self._links.get(id)
        return f"Instance {id} does not answer." if link is not None and link.silent else ""

    async def update_member(self, **changes: object) -> None:
        self._me = replace(self._me, **changes)  # type: ignore[arg-type]
        if self._network.instances.get(self._me.id) is self:  # else the start tells it
            self._network.members.update(self._me)

    # --- who is there ---------------------------------------------------------------------------------------

    def record_is(self, id: str, member: Member | None) -> None:
        """See `Membership`."""
        link = self._links.get(id)
        if member is None:
            self._leased.discard(id)
            if link is not None and link.silent:
                self._drop(id)
            return
        self._leased.add(id)
        if self._left.get(id) == member.epoch:
            return
        if link is not None and link.member.epoch != member.epoch:
            self._drop(id)
            link = None
        if link is not None and link.member == member:
            return
        self._tell(Joined(member))
        if link is not None:
            link.member = member
            return
        self._links[id] = _Link(member)
        self._connect(id)

    def records_are(self, members: Mapping[str, Member]) -> None:
        """See `Membership`."""
        for id in [id for id in self._leased if id not in members]:
            self.record_is(id, None)
        for id, member in members.items():
            if id != self.me.id:
                self.record_is(id, member)

    def said_goodbye(self, member: Member) -> None:
        self._left[member.id] = max(self._left.get(member.id, 0), member.epoch)
        link = self._links.get(member.id)
        if link is not None and link.member.epoch == member.epoch:
            self._drop(member.id)

    def _connect(self, id: str) -> None:
        """If it can be reached, all it holds is told, and from then on what changes."""
        link, other = self._links[id], self._network.instances.get(id)
        if other is None or other.me.epoch != link.member.epoch or not self._network.reaches(self.me.id, id):
            return
        self._hear_all(other)
        if link.told_silent:
            self._tell(Back(id))
        link.silent = link.told_silent = False
        self.dataplane.find_address(other.me.address)

    def _drop(self, id: str) -> None:
        del self._links[id]
        self._tell(Gone(id))

    def _hear_all(self, other: FakePeers) -> None:
        """A snapshot in two pieces."""
        now_s = asyncio.get_running_loop().time()
        rows = list(other._held.values())
        half = len(rows) // 2
        failed = tuple(
            row._replace(expires_in_ms=max(round((ends_s - now_s) * 1000), 1))
            for row, ends_s in other._failed.values()
            if ends_s > now_s
        )
        first = Update(other.me.epoch, other._sequence, True, False, tuple(rows[:half]))
        second = Update(other.me.epoch, other._sequence, False, True, tuple(rows[half:]), failed, other._load)
        for update in (first, second):
            self._arrives(other.me.id, update)

    # --- the stream -----------------------------------------------------------------------------------------

    async def next_news(self) -> list[News]:
        while not self._news:
            self._wake.clear()
            await self._wake.wait()
        news, self._news = self._news, []
        return news

    def reached(self, id: str, reached: bool) -> None:
        """Silence comes when the data plane finds it, here."""

    def announce(
        self, held: Sequence[Held] = (), failed: Sequence[Failed] = (), load: Load | None = None
    ) -> int:
        self._sequence += 1
        now_s = asyncio.get_running_loop().time()
        for row in held:
            if row.loaded or row.loading:
                self._held[row.model] = row
            else:
                self._held.pop(row.model, None)
        for failure in failed:
            self._failed[failure.model] = failure, now_s + failure.expires_in_ms / 1000
        self._load = load or self._load
        if self._network.instances.get(self.me.id) is self:
            update = Update(self.me.epoch, self._sequence, False, True, tuple(held), tuple(failed), load)
            for other in self._network.instances.values():
                if (
                    other is not self
                    and other.follows(self.me)
                    and self._network.passes(self.me.id, other.me.id)
                ):
                    other._arrives(self.me.id, update)
        return self._sequence

    def follows(self, member: Member) -> bool:
        """Whether it hears what this life of a member tells."""
        link = self._links.get(member.id)
        return link is not None and not link.silent and link.member.epoch == member.epoch

    def _arrives(self, source: str, update: Update) -> None:
        loop = asyncio.get_running_loop()
        late_s = self._network.late_s(source, self.me.id)
        at_s = max(loop.time() + late_s + self._network.delay(), self._heard_s.get(source, 0.0) + 1e-6)
        self._heard_s[source] = at_s
        loop.call_at(at_s, self._tell, Told(source, update))

    def _tell(self, news: News) -> None:
        self._news.append(news)
        self._wake.set()

    # --- suspicion ------------------------------------------------------------------------------------------

    def look_at(self, id: str) -> None:
        """Pings were missed since a while."""
        link, frozen = self._links.get(id), self.me.id in self._network.frozen
        if self.dead or link is None or frozen or self._network.reaches(self.me.id, id):
            return
        self.dataplane.lose_address(link.member.address, silent=True)
        self._fall_silent(id)

    def hear_again(self) -> None:
        """Connections may work again: what was missed is told anew."""
        for id in list(self._links):
            self._connect(id)

    def connection_broke(self, member: Member) -> None:
        """The other process is dead."""
        link = self._links.get(member.id)
        if link is not None and link.member.epoch == member.epoch:
            self.dataplane.lose_address(member.address)
            asyncio.get_running_loop().call_later(SILENT_S, self._fall_silent_of, member)

    def _fall_silent_of(self, member: Member) -> None:
        link = self._links.get(member.id)
        if not self.dead and link is not None and link.member.epoch == member.epoch:
            self._fall_silent(member.id)

    def _fall_silent(self, id: str) -> None:
        link = self._links[id]
        if not link.silent:
            link.silent = link.told_silent = True
            self._tell(Silent(id))
        if id not in self._leased:
            self._drop(id)

    # --- asking ---------------------------------------------------------------------------------------------

    async def provide(self, id: str, ask: Ask) -> Provided:
        link = self._links.get(id)
        patience_s = DOUBT_S if link is not None and link.silent else ask.deadline_s
        return await self._asks(
            "provide", id, ask, lambda theirs: theirs.provide(self.me.id, ask), patience_s
        )

    async def load(self, id: str, ask: Ask) -> Provided:
        return await self._asks("load", id, ask, lambda theirs: theirs.load(self.me.id, ask), ask.deadline_s)

    async def unload(self, id: str, model: str, why: str) -> None:
        ask = Ask(model, 30.0, Why.ASKED, why)
        await self._asks("unload", id, ask, lambda theirs: theirs.unload(self.me.id, model, why), 30.0)

    async def recall(
        self, id: str, names: Sequence[str], limit: int, deadline_s: float
    ) -> Sequence[Remembered]:
        ask = Ask("", deadline_s, Why.ASKED, "")
        return await self._asks(
            "recall", id, ask, lambda theirs: theirs.recall(self.me.id, names, limit), deadline_s
        )

    async def order(self, id: str, order: Order) -> None:
        ask = Ask("", ORDER_S, Why.ASKED, order)
        await self._asks("order", id, ask, lambda theirs: theirs.order(self.me.id, order), ORDER_S)

    async def _asks(
        self,
        kind: str,
        id: str,
        ask: Ask,
        call: Callable[[Hosted], Coroutine[Any, Any, T]],
        patience_s: float,
    ) -> T:
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + ask.deadline_s
        await self._network.go_on(self.me.id)
        await asyncio.sleep(self._network.delay())
        reached = await self._network.reached(self.me.id, id, min(patience_s, ask.deadline_s))
        other = self._network.instances.get(id)
        if other is None:
            raise RuntimeUnavailable(f"Instance {id} cannot be reached.", model=ask.model)
        if not reached:
            raise RuntimeUnavailable(f"Instance {id} does not answer.", model=ask.model)
        assert other._hosted is not None
        other.asked.append((kind, self.me.id, ask))
        task = loop.create_task(call(other._hosted))
        other._tasks[task] = None
        task.add_done_callback(other._tasks.pop)
        try:
            await asyncio.wait({task}, timeout=max(ends_s - loop.time(), 0.0))
        finally:
            task.cancel()
        late = not task.done()
        await self._network.go_on(id, self.me.id)
        await asyncio.sleep(self._network.delay())
        if late and kind in ("provide", "load"):
            raise LoadTimeout(f"Model {ask.model} was not loaded in time.", model=ask.model)
        if late or task.cancelled() or not self._network.reaches(self.me.id, id):
            raise RuntimeUnavailable(f"Instance {id} did not answer in time.", model=ask.model)
        return task.result()
