"""A network of fake instances: delays, reordering between instances, partitions, silence and crashes, in virtual time.

    network = Network(random.Random(1))
    peers = network.join(Member("a", 1, "a:1"), dataplane)

What `peers.protocol` promises, `FakePeers` keeps: an instance is gone when its lease is gone *and* its connection silent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from modelmesh.errors import RuntimeUnavailable
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

ACKNOWLEDGE_S: Final = 0.25
SILENT_S: Final = 0.75
"""Three pings missed."""
LEASE_S: Final = 10.0
ORDER_S: Final = 5.0

T = TypeVar("T")


class Network:
    """Who can reach whom. A frozen instance (as by SIGSTOP) neither hears nor answers, but its connections stay."""

    def __init__(self, rng: random.Random, delay_s: tuple[float, float] = (0.0002, 0.002)) -> None:
        self._rng = rng
        self._delay_s = delay_s
        self.instances: dict[str, FakePeers] = {}
        """By id, in their present lives; crashed ones are out."""
        self._cut: set[frozenset[str]] = set()
        self.frozen: set[str] = set()
        self._mended = asyncio.Event()

    def join(self, member: Member, dataplane: FakeDataPlane) -> FakePeers:
        """The peers of a new instance; it is a member after `start`."""
        peers = FakePeers(self, member, dataplane)
        dataplane.network = Reach(self, member.id)
        return peers

    def delay(self) -> float:
        low_s, high_s = self._delay_s
        return self._rng.uniform(low_s, high_s)

    def reaches(self, source: str, target: str) -> bool:
        """Whether what one says arrives at the other and is answered."""
        return (
            target in self.instances
            and frozenset((source, target)) not in self._cut
            and not {source, target} & self.frozen
        )

    # --- the script -----------------------------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between two instances, until `mend`. Both notice by silence."""
        self._cut.add(frozenset((one, other)))
        self._watch(one, other)

    def mend(self) -> None:
        """All partitions end, all frozen instances go on."""
        self._cut.clear()
        self.frozen.clear()
        self._mended.set()
        self._mended = asyncio.Event()
        for one in self.instances.values():
            for other in self.instances.values():
                if one is not other:
                    one.hears_again(other)

    async def reached(self, source: str, target: str, within_s: float) -> bool:
        """Wait until what one says arrives at the other, as a connection does that is not given up. Whether it did in time, and
        the other lives."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while target in self.instances and not self.reaches(source, target):
                    await self._mended.wait()
        return self.reaches(source, target)

    def freeze(self, id: str) -> None:
        """An instance stops as by SIGSTOP, until `mend`. Its own loop goes on here, but nothing of it reaches anybody."""
        self.frozen.add(id)
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
        dead = self.instances.pop(id)
        dead.die()
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


class FakePeers:
    """`peers.protocol.Peers` of one instance in one life."""

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
        self._silent: set[str] = set()
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
        for other in self._network.instances.values():
            self._meet(other)
            other._meet(self)
        self._network.instances[self.me.id] = self
        await asyncio.sleep(3 * self._network.delay())

    def _meet(self, other: FakePeers) -> None:
        self._tell(Joined(other.me))
        self._hear_all(other)

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

    async def stop(self) -> None:
        if self._network.instances.get(self.me.id) is not self:
            return
        del self._network.instances[self.me.id]
        self.die()
        for other in self._network.instances.values():
            other._tell(Gone(self.me.id))

    def die(self) -> None:
        """No call of it goes on."""
        self.dead = True
        for task in list(self._tasks):
            task.cancel()

    async def update_member(self, **changes: object) -> None:
        self._me = replace(self._me, **changes)  # type: ignore[arg-type]
        if self._network.instances.get(self._me.id) is not self:
            return  # the start tells it
        for other in self._network.instances.values():
            if other is not self:
                other._tell(Joined(self._me))

    # --- the stream -----------------------------------------------------------------------------------------

    async def next_news(self) -> list[News]:
        while not self._news:
            self._wake.clear()
            await self._wake.wait()
        news, self._news = self._news, []
        return news

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
                if other is not self and self._network.reaches(self.me.id, other.me.id):
                    other._arrives(self.me.id, update)
        return self._sequence

    def _arrives(self, source: str, update: Update) -> None:
        loop = asyncio.get_running_loop()
        at_s = max(loop.time() + self._network.delay(), self._heard_s.get(source, 0.0) + 1e-6)
        self._heard_s[source] = at_s
        loop.call_at(at_s, self._tell, Told(source, update))

    def _tell(self, news: News) -> None:
        self._news.append(news)
        self._wake.set()

    # --- suspicion ------------------------------------------------------------------------------------------

    def look_at(self, id: str) -> None:
        """Pings were missed since a while."""
        other = self._network.instances.get(id)
        if (
            self.dead
            or other is None
            or id in self._silent
            or self._network.reaches(self.me.id, id)
            or self.me.id in self._network.frozen
        ):
            return
        self._silent.add(id)
        self._tell(Silent(id))
        self.dataplane.lose_address(other.me.address, silent=True)

    def hears_again(self, other: FakePeers) -> None:
        """The connection to an instance works again: what was missed is told anew."""
        self._hear_all(other)
        if other.me.id in self._silent:
            self._silent.discard(other.me.id)
            self._tell(Back(other.me.id))
        self.dataplane.find_address(other.me.address)

    def connection_broke(self, member: Member) -> None:
        """The other process is dead."""
        self.dataplane.lose_address(member.address)
        self._silent.discard(member.id)
        asyncio.get_running_loop().call_later(LEASE_S, self._lease_ended, member)
        asyncio.get_running_loop().call_later(SILENT_S, self._silent_dead, member)

    def _silent_dead(self, member: Member) -> None:
        present = self._network.instances.get(member.id)
        if not self.dead and (present is None or present.me.epoch == member.epoch):
            self._tell(Silent(member.id))

    def _lease_ended(self, member: Member) -> None:
        present = self._network.instances.get(member.id)
        if not self.dead and present is None:
            self._tell(Gone(member.id))

    # --- asking ---------------------------------------------------------------------------------------------

    async def provide(self, id: str, ask: Ask) -> Provided:
        return await self._asks(
            "provide", id, ask, lambda theirs: theirs.provide(self.me.id, ask), ACKNOWLEDGE_S
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
        await asyncio.sleep(self._network.delay())
        reached = await self._network.reached(self.me.id, id, min(patience_s, ask.deadline_s))
        other = self._network.instances.get(id)
        if other is None:
            raise RuntimeUnavailable(f"Instance {id} cannot be reached.", model=ask.model)
        if not reached:
            raise RuntimeUnavailable(f"Instance {id} does not answer.", model=ask.model)
        assert other._hosted is not None
        other.asked.append((kind, self.me.id, ask))
        task = asyncio.get_running_loop().create_task(call(other._hosted))
        other._tasks[task] = None
        task.add_done_callback(other._tasks.pop)
        try:
            await asyncio.wait({task}, timeout=ask.deadline_s)
        finally:
            task.cancel()
        await asyncio.sleep(self._network.delay())
        if task.cancelled() or not task.done() or not self._network.reaches(self.me.id, id):
            raise RuntimeUnavailable(f"Instance {id} did not answer in time.", model=ask.model)
        return task.result()
