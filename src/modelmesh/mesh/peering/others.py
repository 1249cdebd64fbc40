"""This instance among others: hears them, tells them, routes to their copies, has models loaded by them and for them.

An instance without peers has none of this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, Final

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import DataPlane, NotHere
from modelmesh.errors import ModelMeshError, ModelNotFound, RuntimeUnavailable, StoreUnavailable
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.asks import TIMEOUT_S, Asks
from modelmesh.mesh.cache.copies import Copies
from modelmesh.mesh.cache.failures import Failures, Standing
from modelmesh.mesh.cache.histories import Histories
from modelmesh.mesh.cache.refusals import Refusals
from modelmesh.mesh.cache.routes import Abroad
from modelmesh.mesh.fleet import Fleet, Known
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.peering.announcer import Announcer
from modelmesh.mesh.peering.condition import Condition
from modelmesh.mesh.peering.provider import PLACES, Provider
from modelmesh.peers.protocol import (
    Ask,
    Back,
    Gone,
    Held,
    Joined,
    Load,
    Member,
    Order,
    Peers,
    Provided,
    Remembered,
    Silent,
    Tally,
    Told,
)
from modelmesh.policy.runtimes import Constraint
from modelmesh.policy.urgency import Why

if TYPE_CHECKING:
    from modelmesh.mesh.peering.overview import Overview

log = logging.getLogger(__name__)

SUSPECT_S: Final = 1.0
"""Whose only holder is silent, waits so long for it to answer, then has it loaded elsewhere."""
BRINGS_MAX: Final = 20_000
"""Models that requests of this instance may wait for while others see to them."""
TYPES_OF: Final = 1_000
"""Copies of an instance that are looked at for their types."""
UNLOAD_S: Final = 60.0
LEARN_S: Final = 1.0
"""How long the store may take to tell of a model that another instance asks for, until yet another is asked."""


@dataclass(slots=True)
class _Bringing:
    """How many requests wait, as far as known, and until when (monotonic) the most patient."""

    waiting: int
    latest_s: float
    task: asyncio.Task[None] | None = None


class Others:
    """Implements `peers.protocol.Hosted` and `provider.Here`."""

    def __init__(
        self,
        peers: Peers,
        dataplane: DataPlane,
        registrar: Registrar,
        histories: Histories,
        failures: Failures,
        refusals: Refusals,
        clock: Clock,
        journal: Journal,
        constraints: Mapping[str, Constraint],
        *,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        settle: Callable[[], None],
    ) -> None:
        self._peers = peers
        self._registrar = registrar
        self._mirror = registrar.mirror
        self._histories = histories
        self._failures = failures
        self._refusals = refusals
        self._clock = clock
        self._journal = journal
        self._spawn = spawn
        self._settle = settle
        self.fleet = Fleet(peers.me.id)
        self.abroad = Abroad(self.fleet, dataplane)
        self._bringing: dict[str, _Bringing] = {}
        """Models that requests wait for here and others see to."""
        self._pointed: set[str] = set()
        """Models whose route was published since the last tick because requests waited. One that does not help is not published
        again and again."""
        self.provider = Provider(
            peers, self.fleet, self, clock, journal, constraints,
            record_of=self._mirror.model, spawn=spawn,
        )  # fmt: skip
        self._copies: Copies
        self._asks: Asks
        self._condition: Condition
        self._overview: Overview
        self.announcer: Announcer
        self.on_copies: Callable[[Sequence[str]], None] = lambda models: None
        """Called with the models whose holders may be others than before."""
        self.on_lost: Callable[[str, Mapping[str, Known]], None] = lambda id, copies: None
        """Called with what an instance held that is gone."""
        self.on_unload: Callable[[str], None] = lambda model: None
        """Called when another instance was asked to have a model unloaded."""
        self.on_tallies: Callable[[str, int, tuple[Tally, ...]], None] = lambda id, epoch, tallies: None
        """Called with what copies of an instance, in one of its lives, served in trials of canaries."""
        self.on_members: Callable[[], None] = lambda: None
        """Called when instances came, went, fell silent, take no more loads, or when all is known that one holds."""

    def attach(self, copies: Copies, asks: Asks, condition: Condition, overview: Overview) -> None:
        """The parts that need this one to be built."""
        self._copies, self._asks, self._condition, self._overview = copies, asks, condition, overview
        self.announcer = Announcer(self._peers, copies, self._failures, self._clock, condition.load)
        copies.on_change(self.announcer.changed)
        self._failures.told_of = self.announcer.failed

    # --- hearing --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hear the others until cancelled."""
        members = self._members()
        while True:
            touched = False
            for news in await self._peers.next_news():
                new = isinstance(news, Joined) and self._is_new(news.member)
                before = self.fleet.get(news.member.id if isinstance(news, Joined) else news.id)
                changed = self.fleet.apply(news, self._clock.monotonic_s())
                match news:
                    case Joined(member) if new:
                        self._journal.record(
                            Did.JOINED, "", f"Instance {member.id} is there, at {member.address}."
                        )
                    case Gone(id):
                        self.provider.away(id)
                        self._journal.record(Did.LOST, "", f"Instance {id} is gone.", copies=len(changed))
                    case Silent(id):
                        self.provider.away(id)
                        self._journal.record(
                            Did.SUSPECTED, "", f"Instance {id} does not answer.", copies=len(changed)
                        )
                    case Told(id, update):
                        self._remember(update.held)
                        if update.load is not None:
                            self.provider.places.told_load(id)
                            self.on_tallies(id, update.epoch, update.load.tallies)
                    case Back(id):
                        self._journal.record(Did.REVIVED, "", f"Instance {id} answers again.")
                if before is not None and self.fleet.get(before.id) is not before:
                    self.on_lost(before.id, before.copies)
                if changed:
                    touched = True
                    self._copies.routes.changed_abroad(changed)
                    self.on_copies(changed)
            before_members, members = members, self._members()
            if members != before_members:
                touched = True
                self.abroad.follow()
                self.provider.places.deployment_changed()
                self.on_members()
            if touched:  # mostly, others only tell how they are doing
                self._settle()

    def _remember(self, rows: Sequence[Held]) -> None:
        """How models were used that another instance gave up, and this one keeps: it will be asked where to load them again."""
        for row in rows:
            gone = not row.loaded and not row.loading
            if gone and row.rate_per_s > 0.0 and self.provider.keeps(row.model):
                self._hear_use(row.model, row.rate_per_s, row.last_used_wall_ms)

    def _is_new(self, member: Member) -> bool:
        known = self.fleet.get(member.id)
        return known is None or known.member.epoch != member.epoch

    def _members(self) -> list[tuple[Member, bool, bool, bool]]:
        return [(peer.member, peer.silent, peer.takes_loads, peer.heard >= 0) for peer in self.fleet]

    def tick(self) -> None:
        """Tell the others what is due."""
        self._pointed.clear()
        self.announcer.tick()

    def reached(self, target_id: int, reached: bool) -> bool:
        """The data plane lost a target, or has it back. False when it is no other instance."""
        id = self.abroad.instance(target_id)
        if id is None:
            return False
        self.fleet.reached(id, reached)
        self._peers.reached(id, reached)
        if not reached:
            self.provider.away(id)
        return True

    def not_here(self, event: NotHere) -> bool:
        """A copy is not where it was thought to be. False when it is no copy of another instance."""
        held = self.abroad.holder(event.replica_id)
        if held is None:
            return False
        model, id = held
        self.fleet.deny(id, model)
        self._copies.routes.mark(model)
        return True

    def types(self) -> set[str]:
        """Model types in use in other instances, as a look at some of the copies in each shows."""
        copies = (model for peer in self.fleet for model in islice(peer.copies, TYPES_OF))
        records = (self._mirror.model(model) for model in copies)
        return {record.type for record in records if record is not None}

    # --- requests that wait here ----------------------------------------------------------------------------

    def see_to(self, model: str, waiting: int, latest_deadline_s: float) -> bool:
        """Requests wait for a model without a copy here, or with one that leaves. False when nobody else is there: then it is
        loaded here, as by an instance alone."""
        if not len(self.fleet):
            return False
        self._copies.routes.await_copy(model)
        if self._served(model):
            if model not in self._pointed:
                self._pointed.add(model)
                self._copies.routes.mark(model)
            return True
        if (bringing := self._bringing.get(model)) is not None:
            bringing.waiting = waiting
            bringing.latest_s = max(bringing.latest_s, latest_deadline_s)
            return True
        standing = self.standing(model)
        if standing is not None:
            self._copies.routes.await_no_more(model)
            self._refusals.model(model, standing.error, standing, waiting)
            return True
        if len(self._bringing) < BRINGS_MAX:
            bringing = self._bringing[model] = _Bringing(waiting, latest_deadline_s)
            bringing.task = self._spawn(self._bring(model, bringing), f"bring {model}")
        return True

    def _served(self, model: str) -> bool:
        """Whether a copy elsewhere will do: one that can be asked, or that is silent only since a moment ago."""
        holders = [peer for peer in self.fleet.holders(model) if not peer.lost]
        if not holders:
            return False
        if self.fleet.doubts_itself or any(not peer.silent for peer in holders):
            return True
        return self._clock.monotonic_s() < min(peer.silent_s for peer in holders) + SUSPECT_S

    def standing(self, model: str) -> Standing | None:
        """The newest failure, when so many instances failed that no other is tried before one of them may try again."""
        now_s = self._clock.monotonic_s()
        failures = self.fleet.failures(model, now_s)
        mine = self._failures.standing(model)
        n_failed = len(failures) + (mine is not None)
        if n_failed < min(PLACES, len(self.fleet) + 1):
            return None
        newest = failures[0][1] if failures else None
        if mine is not None and (newest is None or mine.at_s >= newest.told_s):
            return mine
        if newest is None:
            return None
        return Standing(newest.error, newest.told_s, newest.expires_s, n_failed)

    async def _bring(self, model: str, bringing: _Bringing) -> None:
        """Have it provided for those who wait here."""
        error: ModelMeshError | None = None
        try:
            provided = await self._provided(model, bringing)
        except ModelMeshError as raised:
            error = raised
        finally:
            if self._bringing.get(model) is bringing:
                del self._bringing[model]
        if error is not None:
            self._copies.routes.await_no_more(model)
            if self._clock.monotonic_s() < bringing.latest_s:
                self._refusals.model(model, error, self.standing(model), bringing.waiting)
        elif provided.holder != self._peers.me.id:
            self._copies.routes.await_copy(model)
            self._copies.routes.mark(model)
        self._settle()

    async def _provided(self, model: str, bringing: _Bringing) -> Provided:
        """Until the last that waits gives up, also one that came since it was asked for first."""
        while True:
            asked_until_s = bringing.latest_s
            patience_s = max(asked_until_s - self._clock.monotonic_s(), 0.0)
            why = f"{bringing.waiting} request{'s wait' if bringing.waiting > 1 else ' waits'} for it"
            try:
                return await self.provider.ask(self._ask(model, patience_s, Why.URGENT, why))
            except ModelMeshError:
                if self._clock.monotonic_s() < asked_until_s or bringing.latest_s <= asked_until_s:
                    raise

    def fails_here(self, model: str) -> bool:
        """A load failed here, and requests here wait. Whether others are tried before they are told: those who wait are seen
        to with the next look at who waits, and told then if nobody else is left."""
        return bool(len(self.fleet)) and self.standing(model) is None

    def abandoned(self, model: str) -> None:
        """No request waits for it any more."""
        self._copies.routes.await_no_more(model)
        bringing = self._bringing.pop(model, None)
        if bringing is not None and bringing.task is not None:
            bringing.task.cancel()

    # --- calls of this instance -----------------------------------------------------------------------------

    def _ask(self, model: str, deadline_s: float, need: Why, why: str, until_used: bool = False) -> Ask:
        rate_per_s, last_used_ms = self.use(model)
        denied = tuple(sorted(peer.id for peer in self.fleet if model in peer.denied))
        return Ask(model, deadline_s, need, why, rate_per_s, last_used_ms, denied, until_used=until_used)

    def ask_like(self, model: str, like: str, deadline_s: float, why: str) -> Ask:
        """Ask for a copy that is expected to be used as one of another model is: here, else where it was used last."""
        rate_per_s, last_used_ms = self.use(like)
        if not rate_per_s and (facts := self.fleet.facts(like)) is not None:
            rate_per_s, last_used_ms = facts.rate_per_s, facts.last_used_wall_ms
        return Ask(model, deadline_s, Why.ASKED, why, rate_per_s, last_used_ms)

    def copies(self, model: str) -> int:
        """In how many other instances, of those that answer, it is loaded."""
        return sum(not peer.silent and not peer.lost for peer in self.fleet.holders(model))

    def use(self, model: str) -> tuple[float, int]:
        """What is known here of its use: uses per second, and the last (wall, ms); zeros when nothing is."""
        copy = self._copies.get(model)
        history = copy.history if copy is not None else self._histories.peek(model)
        if history is None or not history.count:
            return 0.0, 0
        now_s = self._clock.monotonic_s()
        last_used_ms = round((self._clock.wall_s() - (now_s - history.last_s)) * 1000)
        return history.rate_per_s(now_s), last_used_ms

    def somewhere(self, model: str) -> bool:
        """Whether another instance that answers has it loaded."""
        return self.copies(model) > 0

    def serving(self, model: str) -> set[str]:
        """The instances that answer and have it loaded, this one too."""
        ids = {peer.id for peer in self.fleet.holders(model) if not peer.silent and not peer.lost}
        return ids | {self._peers.me.id} if self.has(model) else ids

    def begun(self, model: str) -> set[str]:
        """The instances where a load of it is under way, or a copy that may be kept is about to leave; this one too."""
        ids = {peer.id for peer in self.fleet.loading(model)}
        here = self._copies.get(model) is not None and not self.has(model)
        return ids | {self._peers.me.id} if here else ids

    async def have_loaded(
        self, model: str, why: str, timeout_s: float, until_used: bool, need: Why = Why.ASKED
    ) -> None:
        """Return when it is loaded in some instance; with `until_used` it is held there until its first use. Raises what kept
        it from that."""
        if not self.somewhere(model):
            await self.provider.ask(self._ask(model, timeout_s, need, why, until_used))
            self._settle()

    async def have_copies(
        self,
        model: str,
        copies: int,
        why: str,
        *,
        need: Why = Why.ASKED,
        worth_s: float = inf,
        execution_s: float = 0.0,
    ) -> None:
        """Return when so many are loaded in all. Raises what kept it from that."""
        ask = self._ask(model, TIMEOUT_S, need, why)
        await self.provider.ask(replace(ask, copies=copies, worth_s=worth_s, execution_s=execution_s))
        self._settle()

    async def load_at(self, id: str, ask: Ask) -> Provided:
        """Have it loaded by one instance. Raises what kept it from that."""
        provided = await self.provider.load_at(id, ask)
        self._copies.routes.mark(ask.model)
        self._settle()
        return provided

    async def load_elsewhere(self, model: str, timeout_s: float, why: str) -> None:
        """Have one more copy loaded, in an instance that has none. Raises what kept it from that."""
        ask = self._ask(model, timeout_s, Why.URGENT, why)
        provided = await self.provider.load_another(ask)
        self.fleet.provided(model, provided)
        self._copies.routes.mark(model)
        self._settle()

    async def unload_elsewhere(self, model: str, why: str) -> None:
        """Have every other instance give its copy up, and the keeper know. Who cannot be reached keeps it, and says so later."""
        told = [peer.id for peer in self.fleet if model in peer.copies]
        keeper = self.provider.keepers(model)[0]
        if keeper not in (*told, self._peers.me.id):
            told.append(keeper)
        calls = [self._peers.unload(id, model, why) for id in told]
        for id, answer in zip(told, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(answer, ModelMeshError):
                log.warning("Instance %s did not unload %s: %s", id, model, answer)
            elif isinstance(answer, BaseException):
                raise answer

    # --- Here and Hosted ------------------------------------------------------------------------------------

    def has(self, model: str) -> bool:
        return bool(self._copies.routes.here(model))

    def load_now(self) -> Load:
        """How this instance is doing."""
        return self._condition.load()

    def failure(self, model: str) -> ModelMeshError | None:
        standing = self._failures.standing(model)
        return None if standing is None else standing.error

    def typical_bytes(self) -> int:
        return self._copies.typical_bytes()

    async def load_here(self, ask: Ask) -> Provided:
        load = self._condition.load()
        if load.draining or (load.cordoned and self._copies.get(ask.model) is None):
            doing = "is draining" if load.draining else "is cordoned"
            raise RuntimeUnavailable(
                f"Instance {self._peers.me.id} {doing}: model {ask.model} is not loaded there.",
                model=ask.model,
            )
        if ask.need is Why.URGENT and (failure := self.failure(ask.model)) is not None:
            raise failure
        self._inherit(ask)
        await self._asks.load(
            ask.model, ask.why, ask.until_used, ask.deadline_s, need=ask.need, suspicion=ask.suspicion
        )
        me = self._peers.me
        return Provided(me.id, me.epoch, self.announcer.flush())

    def _inherit(self, ask: Ask) -> None:
        """What the asker knows of its use."""
        self._hear_use(ask.model, ask.rate_per_s, ask.last_used_wall_ms)

    def _hear_use(self, model: str, rate_per_s: float, last_used_wall_ms: int) -> None:
        """What another instance knows of the use of a model without a copy here."""
        if rate_per_s <= 0.0 or self._copies.get(model) is not None:
            return
        history = self._histories.take(model)
        ago_s = max(self._clock.wall_s() - last_used_wall_ms / 1000, 0.0)
        history.hear(rate_per_s, self._clock.monotonic_s() - ago_s)
        self._histories.put(model, history)

    async def _know(self, model: str) -> None:
        """Whoever asks knows it: learn what the store knows before calling it unknown. When it is away, others are asked."""
        if self._mirror.has_model(model):
            return
        try:
            await self._registrar.wait_current(LEARN_S)
        except StoreUnavailable as error:
            raise RuntimeUnavailable(
                f"Instance {self._peers.me.id} does not know model {model}, and cannot learn of it: {error}",
                model=model,
            ) from error
        if not self._mirror.has_model(model):
            raise ModelNotFound.named(model)

    async def provide(self, asker: str, ask: Ask) -> Provided:
        await self._know(ask.model)
        provided = await self.provider.provide(ask)
        if provided.holder == self._peers.me.id:
            return Provided(provided.holder, provided.epoch, self.announcer.flush())
        return provided

    async def load(self, asker: str, ask: Ask) -> Provided:
        await self._know(ask.model)
        return await self.load_here(ask)

    async def unload(self, asker: str, model: str, why: str) -> None:
        self.on_unload(model)
        with suppress(ModelNotFound):
            await self._asks.unload(model, UNLOAD_S)

    async def recall(self, asker: str, names: Sequence[str], limit: int) -> Sequence[Remembered]:
        return self._overview.recollection.here(names, limit)

    async def order(self, asker: str, order: Order) -> None:
        self._overview.orders.obey(order, asker)

    def loading(self, model: str) -> bool:
        """Whether a load runs or waits in another instance."""
        return bool(self.fleet.loading(model))

    @property
    def me(self) -> Member:
        return self._peers.me
