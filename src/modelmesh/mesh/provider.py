"""Having a model loaded somewhere: asked of its keeper; decided, as its keeper.

a request finds no copy -> its keeper (rendezvous order; who does not answer is passed over) -> one flight per model there ->
an instance chosen by cost loads it -> told, or refused after `PLACES` instances failed
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from modelmesh.clock import Clock
from modelmesh.errors import (
    Code,
    LoadFailed,
    LoadTimeout,
    ModelMeshError,
    ModelNotFound,
    NoCapacity,
    RuntimeUnavailable,
)
from modelmesh.journal import Did, Journal
from modelmesh.mesh.fleet import Fleet, Peer
from modelmesh.peers.protocol import Ask, Load, Member, Peers, Provided
from modelmesh.policy.keeper import ranked
from modelmesh.policy.placement import Candidate, Refusal, Wanted, may_hold, place, spare_bytes, worth_s
from modelmesh.policy.revisions import Life, old
from modelmesh.policy.runtimes import DEFAULT, Constraint
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


class Here(Protocol):
    """What the provider asks of its own instance."""

    def has(self, model: str) -> bool:
        """Whether a copy here serves."""

    def load_now(self) -> Load:
        """How it is doing."""

    def failure(self, model: str) -> ModelMeshError | None:
        """The load failure that stands, if one does."""

    def use(self, model: str) -> tuple[float, int]:
        """What is known here of its use: uses per second, and the last (wall, ms); zeros when nothing is."""

    def typical_bytes(self) -> int:
        """What a copy weighs on average; 0 when there is none."""

    async def load_here(self, ask: Ask) -> Provided:
        """Load it, or join its load."""


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
        self._constraints = constraints
        self._record_of = record_of
        self._spawn = spawn
        self._flights: dict[str, _Flight] = {}
        self._calls: dict[str, dict[asyncio.Future[Provided], None]] = {}
        """Instance -> the calls to it that wait, in order: a set of them would be cancelled in the order of addresses."""
        self._pending: dict[str, tuple[int, float]] = {}
        """Instance -> bytes and seconds of loading placed there since it last told how it is doing."""
        self._mine: Load | None = None
        """How this instance was doing when it was last looked at."""
        self._changed_s = clock.monotonic_s()
        """When an instance came, went or drained."""
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
            there = self._begun(model, flight.place, excluded) or self._choose(ask, record, excluded)
            if there is None:
                error = error or self._refusal(ask, excluded)
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
                self._journal.record(
                    Did.LOAD_FAILED, model, f"{there} could not load it: {raised}", places=len(tried)
                )
            else:
                if ask.copies <= 1:
                    return provided
        raise error or self._refusal(ask, tried)

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
            if peer.id not in tried and self._answers(peer) and not (staying and peer.leaves):
                held.append(Provided(peer.id, peer.member.epoch, peer.copies[model].sequence))
        return held

    def _answers(self, peer: Peer) -> bool:
        return not peer.lost and (not peer.silent or self._fleet.doubts_itself)

    def _begun(self, model: str, place: str, tried: Collection[str]) -> str | None:
        """Who has begun to load it, or was asked to: that load is joined."""
        loading = [place, *(peer.id for peer in self._fleet.loading(model))]
        return next((id for id in loading if id and id not in tried), None)

    # --- choosing -------------------------------------------------------------------------------------------

    def _choose(
        self, ask: Ask, record: ModelRecord, tried: Collection[str], *, beside: str = ""
    ) -> str | None:
        """Where to load it, by cost; where a copy of the model `beside` is, only with room for both; a copy nobody waits for only
        where it costs less than it is worth, and a guess only where memory is free. None when there is no place."""
        wanted = self._wanted(ask, record)
        candidates = [one for one in self._candidates(record, ask.model) if one.instance not in tried]
        if beside:
            candidates = self._less(candidates, beside)
        if ask.need is Why.PREWARM:
            candidates = [one for one in candidates if _is_spare(wanted, one)]
        chosen = place(wanted, candidates)
        if isinstance(chosen, Refusal):
            return None
        bytes_there, queue_s = self._pending.get(chosen.instance, (0, 0.0))
        self._pending[chosen.instance] = bytes_there + wanted.size_bytes, queue_s + wanted.load_s
        self._journal.record(
            Did.PLACED,
            ask.model,
            f"Placed at {chosen.instance}, the cheapest of {len(candidates)}, because {ask.why}.",
            cost_s=chosen.cost_s,
            size_bytes=wanted.size_bytes,
            requests_per_s=wanted.rate_per_s,
            candidates=len(candidates),
        )
        return chosen.instance

    def _less(self, candidates: Sequence[Candidate], model: str) -> list[Candidate]:
        """The candidates without the bytes that their copies of a model take."""
        record = self._record_of(model)
        bytes_there = 0 if record is None else self._size_bytes(model, record)
        holders = {peer.id for peer in self._fleet if model in peer.copies}
        if self._here.has(model):
            holders.add(self._peers.me.id)
        return [
            replace(one, capacity_bytes=one.capacity_bytes - bytes_there) if one.instance in holders else one
            for one in candidates
        ]

    def place_beside(self, ask: Ask, beside: str, excluded: Collection[str]) -> str | None:
        """Where to load one more copy that leaves those of the model `beside` alone, by cost. None when there is no such
        place, or no such model."""
        record = self._record_of(ask.model)
        return None if record is None else self._choose(ask, record, excluded, beside=beside)

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
            there = self._choose(ask, record, excluded)
            if there is None:
                break
            try:
                return await self._call(there, self._peers.load(there, ask))
            except ModelMeshError as raised:
                error = raised
                excluded.add(there)
        raise error

    def has_place(self, model: str, record: ModelRecord) -> bool:
        """Whether some instance without a copy might hold one, as far as can be told without asking it."""
        holding = {peer.id for peer in self._fleet if model in peer.copies}
        if self._here.has(model):
            holding.add(self._peers.me.id)
        free = [one for one in self._candidates(record, model) if one.instance not in holding]
        return any(may_hold(self._wanted(Ask(model, 0.0, Why.ASKED, ""), record), one) for one in free)

    def _wanted(self, ask: Ask, record: ModelRecord) -> Wanted:
        facts = self._fleet.facts(ask.model)
        load_ms = record.load_ms or (facts.load_ms if facts is not None else 0)
        holding = [peer.member for peer in self._fleet if ask.model in peer.copies and self._answers(peer)]
        if self._here.has(ask.model):
            holding.append(self._peers.me)
        wanted = Wanted(
            ask.model,
            self._size_bytes(ask.model, record),
            load_ms / 1000,
            max(ask.rate_per_s, facts.rate_per_s if facts is not None else 0.0),
            ask.execution_s or self._execution_s(),
            constraint=self._constraint(record.type),
            zones=tuple(member.zone for member in holding),
            hosts=tuple(member.host for member in holding),
            worth_s=ask.worth_s,
        )
        return replace(wanted, worth_s=min(ask.worth_s, worth_s(wanted))) if ask.need is Why.SCALE else wanted

    def _size_bytes(self, model: str, record: ModelRecord) -> int:
        facts = self._fleet.facts(model)
        told_bytes = facts.size_bytes if facts is not None else 0
        return record.size_bytes or told_bytes or self._here.typical_bytes()

    def _execution_s(self) -> float:
        """What a request takes of an instance, on average over all."""
        loads = [self._here.load_now(), *(peer.load for peer in self._fleet if peer.load is not None)]
        rate_per_s = sum(load.rate_per_s for load in loads)
        return sum(load.busyness for load in loads) / rate_per_s if rate_per_s > 0.0 else 0.0

    def _constraint(self, model_type: str) -> Constraint:
        return self._constraints.get(model_type) or self._constraints.get(DEFAULT) or Constraint()

    def _candidates(self, record: ModelRecord, model: str) -> list[Candidate]:
        """All that answer, as they published themselves, less what was placed there since."""
        mine = self._here.load_now()
        if mine is not self._mine:
            self._mine = mine
            self.told_load(self._peers.me.id)
        rows = [(self._peers.me, mine, self._here.failure(model) is not None)]
        now_s = self._clock.monotonic_s()
        failed = {id for id, _ in self._fleet.failures(model, now_s)}
        for peer in self._fleet:
            if peer.load is not None and self._answers(peer):
                rows.append((peer.member, peer.load, peer.id in failed))
        leaving = self._old_revisions()
        return [
            self._candidate(member, load, record.type, has_failed, member.id in leaving)
            for member, load, has_failed in rows
        ]

    def _old_revisions(self) -> frozenset[str]:
        members = [self._peers.me, *(peer.member for peer in self._fleet)]
        lives = [Life(member.id, member.revision, member.started_wall_ms) for member in members]
        return old(lives, self._clock.monotonic_s() - self._changed_s)

    def deployment_changed(self) -> None:
        """An instance came, went or drains."""
        self._changed_s = self._clock.monotonic_s()

    def _candidate(
        self, member: Member, load: Load, model_type: str, failed: bool, old_revision: bool
    ) -> Candidate:
        served = {served.lower() for served in member.model_types}
        bytes_there, queue_s = self._pending.get(member.id, (0, 0.0))
        return Candidate(
            member.id,
            load.capacity_bytes,
            load.free_bytes - bytes_there,
            load.price,
            load.load_queue_s + queue_s,
            load.busyness,
            member.labels,
            member.zone,
            member.host,
            load.draining,
            load.cordoned,
            not served or model_type.lower() in served,
            failed,
            old_revision,
        )

    def _refusal(self, ask: Ask, tried: Collection[str]) -> ModelMeshError:
        """Why no instance loads it: the newest failure that stands, else that there is no place."""
        failures = self._fleet.failures(ask.model, self._clock.monotonic_s())
        if failures:
            return failures[0][1].error
        if (failure := self._here.failure(ask.model)) is not None:
            return failure
        record = self._record_of(ask.model)
        if record is None:
            return ModelNotFound.named(ask.model)
        candidates = [one for one in self._candidates(record, ask.model) if one.instance not in tried]
        why = place(self._wanted(ask, record), candidates)
        if isinstance(why, Refusal) and why.unsuited:
            return LoadFailed(why.reason, code=Code.FAILED_PRECONDITION, model=ask.model)
        text = why.reason if isinstance(why, Refusal) else f"Nothing would make room for model {ask.model}."
        return NoCapacity(text, model=ask.model, retry_after_s=1.0)

    # --- calls ----------------------------------------------------------------------------------------------

    def told_load(self, id: str) -> None:
        """An instance told how it is doing: what was placed there is in it."""
        self._pending.pop(id, None)

    def away(self, id: str) -> None:
        """An instance does not answer any more: whoever waits for it waits no longer."""
        for call in self._calls.pop(id, ()):
            call.cancel()

    async def _call(self, id: str, call: Coroutine[Any, Any, Provided]) -> Provided:
        """Raises RuntimeUnavailable also when the instance goes away meanwhile."""
        task = asyncio.ensure_future(call)
        self._calls.setdefault(id, {})[task] = None
        try:
            await asyncio.wait({task})
        finally:
            calls = self._calls.get(id)
            if calls is not None:
                calls.pop(task, None)
            if not task.done():
                task.cancel()
        if task.cancelled():
            raise RuntimeUnavailable(f"Instance {id} does not answer any more.")
        return task.result()


def _is_spare(wanted: Wanted, candidate: Candidate) -> bool:
    """Whether a guess is in nobody's way there."""
    spare = spare_bytes(candidate.free_bytes, candidate.capacity_bytes) >= wanted.size_bytes
    return spare and candidate.queue_s <= 0.0


def _capacity(member: Member, load: Load | None) -> int:
    capacity_bytes = member.capacity_bytes or (load.capacity_bytes if load is not None else 0)
    return max(capacity_bytes, 1)
