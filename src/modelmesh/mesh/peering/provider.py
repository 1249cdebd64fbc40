"""Having a model loaded somewhere: asked of its keeper; decided, as its keeper.

a request finds no copy -> its keeper (rendezvous order; who does not answer is passed over) -> one flight per model there ->
an instance chosen by cost loads it -> told, or refused after `PLACES` instances failed
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from modelmesh.clock import Clock
from modelmesh.errors import (
    LoadFailed,
    LoadTimeout,
    ModelMeshError,
    ModelNotFound,
    NoCapacity,
    RuntimeUnavailable,
)
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.failures import nature
from modelmesh.mesh.fleet import Fleet
from modelmesh.mesh.peering.places import Here, Places
from modelmesh.peers.protocol import Ask, Load, Member, Peers, Provided
from modelmesh.policy.backoff import Nature
from modelmesh.policy.keeper import ranked
from modelmesh.policy.runtimes import Constraint
from modelmesh.policy.urgency import Why
from modelmesh.registry.records import ModelRecord

PLACES: Final = 3
"""So many instances try a model before those who wait are told why not (reference mesh.md 8.1)."""
HOPS: Final = 3
"""An ask handed on so often is met where it arrived."""
LOAD_S: Final = 300.0
"""What a load may take: longer than any caller waits, because a load belongs to no caller."""


@dataclass(slots=True)
class _Flight:
    """A model being provided."""

    outcome: asyncio.Future[Provided]
    task: asyncio.Task[None]
    need: Why
    place: str = ""
    """Where it is loaded, once that is decided."""
    waiting: int = 0


class Provider:
    """`record_of` answers from the mirror. Tasks are spawned, so that a flight survives whoever began it."""

    def __init__(
        self,
        peers: Peers,
        fleet: Fleet,
        here: Here,
        clock: Clock,
        journal: Journal,
        constraints: Mapping[str, Constraint],
        *,
        record_of: Callable[[str], ModelRecord | None],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._peers = peers
        self._fleet = fleet
        self._here = here
        self._clock = clock
        self._journal = journal
        self.places = Places(peers, fleet, here, clock, journal, constraints, record_of=record_of)
        self._record_of = record_of
        self._spawn = spawn
        self._flights: dict[str, _Flight] = {}
        self._calls: dict[str, dict[asyncio.Timeout, None]] = {}
        """Instance -> the calls to it that wait, in order: a set of them would be ended in the order of addresses."""
        self.on_refused: Callable[[str, ModelMeshError], None] = lambda model, error: None
        """Called when a model that requests wait for could not be provided."""

    # --- asking ---------------------------------------------------------------------------------------------

    def keepers(self, model: str) -> list[str]:
        """The instances that may keep it, the keeper first. Only this one when there is no other."""
        me = self._peers.me
        weights = {
            peer.id: float(_capacity(peer.member, peer.load))
            for peer in self._fleet
            if peer.takes_loads and (not peer.silent or self._fleet.doubts_itself)
        }
        here = self._here.load_now()
        if not (here.draining or here.cordoned) or not weights:
            weights[me.id] = float(_capacity(me, here))
        return ranked(model, weights)

    def keeps(self, model: str) -> bool:
        """Whether this instance is the keeper of an id."""
        return self.keepers(model)[0] == self._peers.me.id

    async def ask(self, ask: Ask) -> Provided:
        """Have it provided by its keeper, or the next. Raises what kept it from being loaded."""
        me = self._peers.me.id
        if ask.hops >= HOPS:
            return await self._here.load_here(ask)
        ends_s = self._clock.monotonic_s() + ask.deadline_s
        for keeper in self.keepers(ask.model):
            if keeper == me:
                return await self.provide(ask)
            left_s = ends_s - self._clock.monotonic_s()
            asked = replace(ask, hops=ask.hops + 1, deadline_s=max(left_s, 0.0))
            try:
                provided = await self._call(keeper, self._peers.provide(keeper, asked))
            except RuntimeUnavailable:
                if self._clock.monotonic_s() >= ends_s:
                    break
                continue
            self._fleet.provided(ask.model, provided)
            return provided
        if self._clock.monotonic_s() < ends_s and not self._here.load_now().draining:
            return await self.provide(ask)
        raise RuntimeUnavailable(
            f"No instance that answers could provide model {ask.model} in time.",
            model=ask.model,
            retry_after_s=1.0,
        )

    # --- keeping --------------------------------------------------------------------------------------------

    async def provide(self, ask: Ask) -> Provided:
        """As its keeper: join what runs, else find it a place. The flight ends when nobody waits for it any more; a load that has
        begun goes on."""
        flight = self._flights.get(ask.model)
        if flight is None or ask.need < flight.need:
            flight = self._begin(ask, flight)
        flight.waiting += 1
        try:
            done, _ = await asyncio.wait({flight.outcome}, timeout=max(ask.deadline_s, 0.0))
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                self._end(ask.model, flight)
        if not done:
            raise LoadTimeout(f"Model {ask.model} was not loaded in time.", model=ask.model)
        return flight.outcome.result()

    def _begin(self, ask: Ask, before: _Flight | None) -> _Flight:
        outcome: asyncio.Future[Provided] = asyncio.get_running_loop().create_future()

        async def fly() -> None:
            flight.place = "" if before is None else before.place
            try:
                outcome.set_result(await self._find_place(ask, flight))
            except ModelMeshError as error:
                outcome.set_exception(error)
                outcome.exception()  # those who asked may be gone
                if ask.need is Why.URGENT:
                    self.on_refused(ask.model, error)
            finally:
                outcome.cancel()
                self._end(ask.model, flight)

        task = self._spawn(fly(), f"provide {ask.model}")
        flight = self._flights[ask.model] = _Flight(outcome, task, ask.need)
        return flight

    def _end(self, model: str, flight: _Flight) -> None:
        if self._flights.get(model) is flight:
            del self._flights[model]
        if not flight.outcome.done():
            flight.task.cancel()

    async def _find_place(self, ask: Ask, flight: _Flight) -> Provided:
        """Returns one of as many copies as are asked for, or of as many as there may be."""
        model = ask.model
        rate_per_s, last_used_ms = self._here.use(model)
        if last_used_ms > ask.last_used_wall_ms:
            ask = replace(ask, rate_per_s=rate_per_s, last_used_wall_ms=last_used_ms)
        tried = set(ask.tried)
        error: ModelMeshError | None = None
        provided: Provided | None = None
        for _ in range(PLACES + ask.copies):
            record = self._record_of(model)
            if record is None:
                raise ModelNotFound.named(model)
            held = self._held(model, tried, staying=ask.copies > 1)
            if len(held) >= record.keep.at_most(ask.copies):
                return provided or held[0]
            if len(tried) - len(ask.tried) >= PLACES:
                break
            excluded = tried | {copy.holder for copy in held}
            there = self._begun(model, flight.place, excluded) or self.places.choose(ask, record, excluded)
            if there is None:
                error = error or self.places.refusal(ask, excluded)
                break
            flight.place = there
            suspicion = not held and any(peer.holds(model) and peer.id not in tried for peer in self._fleet)
            asked = replace(
                ask, deadline_s=LOAD_S, tried=tuple(sorted(tried)), hops=ask.hops + 1, suspicion=suspicion
            )
            try:
                provided = await self.load_at(there, asked)
            except ModelMeshError as raised:
                error = raised
                tried.add(there)
                if not isinstance(raised, LoadFailed) or nature(raised) is not Nature.AWAY:
                    self._journal.record(  # what is away is looked for often: who looked tells of it now and then
                        Did.LOAD_FAILED, model, f"{there} could not load it: {raised}", places=len(tried)
                    )
            else:
                if ask.copies <= 1:
                    return provided
        raise error or self.places.refusal(ask, tried)

    async def load_at(self, id: str, ask: Ask) -> Provided:
        """Have it loaded by this instance, or by another."""
        if id == self._peers.me.id:
            return await self._here.load_here(ask)
        provided = await self._call(id, self._peers.load(id, ask))
        self._fleet.provided(ask.model, provided)
        return provided

    def _held(self, model: str, tried: Collection[str], *, staying: bool) -> list[Provided]:
        """The copies that are loaded, the one here first; with `staying` without those of instances that go."""
        me, held = self._peers.me, list[Provided]()
        if me.id not in tried and self._here.has(model):
            held.append(Provided(me.id, me.epoch, 0))
        for peer in self._fleet.holders(model):
            if peer.id not in tried and self._fleet.answers(peer) and not (staying and peer.leaves):
                held.append(Provided(peer.id, peer.member.epoch, peer.copies[model].sequence))
        return held

    def _begun(self, model: str, place: str, tried: Collection[str]) -> str | None:
        """Who has begun to load it, or was asked to: that load is joined."""
        loading = [place, *(peer.id for peer in self._fleet.loading(model))]
        return next((id for id in loading if id and id not in tried), None)

    async def load_another(self, ask: Ask) -> Provided:
        """One more copy of a model, in another instance that has none. Raises NoCapacity where there is no place, else what
        the last of `PLACES` raised."""
        model, me = ask.model, self._peers.me.id
        record = self._record_of(model)
        if record is None:
            raise ModelNotFound.named(model)
        excluded = {me, *ask.tried, *(peer.id for peer in self._fleet if model in peer.copies)}
        error: ModelMeshError = NoCapacity(f"No other instance can load {model}.", model=model)
        for _ in range(PLACES):
            there = self.places.choose(ask, record, excluded)
            if there is None:
                break
            try:
                return await self._call(there, self._peers.load(there, ask))
            except ModelMeshError as raised:
                error = raised
                excluded.add(there)
        raise error

    # --- calls ----------------------------------------------------------------------------------------------

    def away(self, id: str) -> None:
        """An instance does not answer any more: whoever waits for it waits no longer."""
        now_s = asyncio.get_running_loop().time()
        for waiting in self._calls.pop(id, ()):
            waiting.reschedule(now_s)

    async def _call(self, id: str, call: Coroutine[Any, Any, Provided]) -> Provided:
        """Raises RuntimeUnavailable also when the instance goes away meanwhile."""
        waiting = asyncio.timeout(None)
        self._calls.setdefault(id, {})[waiting] = None
        try:
            async with waiting:
                return await call
        except TimeoutError:
            if not waiting.expired():
                raise
            raise RuntimeUnavailable(f"Instance {id} does not answer any more.") from None
        finally:
            if (calls := self._calls.get(id)) is not None:
                calls.pop(waiting, None)


def _capacity(member: Member, load: Load | None) -> int:
    capacity_bytes = member.capacity_bytes or (load.capacity_bytes if load is not None else 0)
    return max(capacity_bytes, 1)
