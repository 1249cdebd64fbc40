"""Where copies are loaded: the instances as they published themselves, less what was placed there since (`policy.placement`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from modelmesh.clock import Clock
from modelmesh.errors import Code, LoadFailed, ModelMeshError, ModelNotFound, NoCapacity
from modelmesh.journal import Did, Journal
from modelmesh.mesh.fleet import Fleet
from modelmesh.peers.protocol import Ask, Load, Member, Peers, Provided
from modelmesh.policy.placement import Candidate, Refusal, Wanted, may_hold, place, spare_bytes, worth_s
from modelmesh.policy.revisions import Life, old
from modelmesh.policy.runtimes import DEFAULT, Constraint
from modelmesh.policy.urgency import Why
from modelmesh.registry.records import ModelRecord


class Here(Protocol):
    """What is asked of this instance."""

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


class Places:
    """`record_of` answers from the mirror."""

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
    ) -> None:
        self._peers = peers
        self._fleet = fleet
        self._here = here
        self._clock = clock
        self._journal = journal
        self._constraints = constraints
        self._record_of = record_of
        self._pending: dict[str, tuple[int, float]] = {}
        """Instance -> bytes and seconds of loading placed there since it last told how it is doing."""
        self._mine: Load | None = None
        """How this instance was doing when it was last looked at."""
        self._changed_s = clock.monotonic_s()
        """When an instance came, went or drained."""

    # --- news -----------------------------------------------------------------------------------------------

    def told_load(self, id: str) -> None:
        """An instance told how it is doing: what was placed there is in it."""
        self._pending.pop(id, None)

    def deployment_changed(self) -> None:
        """An instance came, went or drains."""
        self._changed_s = self._clock.monotonic_s()

    # --- choosing -------------------------------------------------------------------------------------------

    def choose(
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
        among = f"the cheapest of {len(candidates)}" if len(candidates) > 1 else "where alone it may be"
        self._journal.record(
            Did.PLACED,
            ask.model,
            f"Placed at {chosen.instance}, {among}, because {ask.why}.",
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

    def choose_beside(self, ask: Ask, beside: str, excluded: Collection[str]) -> str | None:
        """Where to load one more copy that leaves those of the model `beside` alone, by cost. None when there is no such
        place, or no such model."""
        record = self._record_of(ask.model)
        return None if record is None else self.choose(ask, record, excluded, beside=beside)

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
        holding = [
            peer.member for peer in self._fleet if ask.model in peer.copies and self._fleet.answers(peer)
        ]
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
            if peer.load is not None and self._fleet.answers(peer):
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

    def refusal(self, ask: Ask, tried: Collection[str]) -> ModelMeshError:
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


def _is_spare(wanted: Wanted, candidate: Candidate) -> bool:
    """Whether a guess is in nobody's way there."""
    spare = spare_bytes(candidate.free_bytes, candidate.capacity_bytes) >= wanted.size_bytes
    return spare and candidate.queue_s <= 0.0
