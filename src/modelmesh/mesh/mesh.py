"""One instance's behaviour, put together: events come in, decisions go out; and the facade the faces ask.

The parts, each in its file: `names` resolve, `faults` and `asks` want, `queue`, `estimates` and `loads` load, `room` and
`evictions` make room, `copies` holds the states with `ledger` and routes, `admission`, `failures` and `refusals` say no, `usage`
learns. After whatever happened, `_settle` starts what may start and publishes the routes that changed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Mapping, Sequence
from itertools import count
from typing import Any

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import DataPlane, Event, Usage
from modelmesh.errors import RuntimeUnavailable
from modelmesh.journal import Journal
from modelmesh.mesh.cache.alarm import Alarm
from modelmesh.mesh.cache.asks import Asks
from modelmesh.mesh.cache.copies import Copies, Copy, identity
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.cache.histories import Histories
from modelmesh.mesh.cache.holds import UNTIL_USED
from modelmesh.mesh.cache.refusals import Refusals
from modelmesh.mesh.cache.routes import Routes
from modelmesh.mesh.cache.site import Shared, Site
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.cache.targets import Targets
from modelmesh.mesh.cache.usage import UsageReader
from modelmesh.mesh.changes import Changes
from modelmesh.mesh.desk import Desk
from modelmesh.mesh.faults import Faults
from modelmesh.mesh.fleet import Fleet
from modelmesh.mesh.invariants import check, pulse
from modelmesh.mesh.keeping.care import Care
from modelmesh.mesh.keeping.filling import Filling
from modelmesh.mesh.keeping.keeping import Keeping
from modelmesh.mesh.keeping.recovery import Recovery
from modelmesh.mesh.keeping.whole import Whole
from modelmesh.mesh.measures import Measures
from modelmesh.mesh.names import Names
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.naming.vmodels import VModels
from modelmesh.mesh.peering.condition import Condition
from modelmesh.mesh.peering.handover import hand_over
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.peering.overview import Overview
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import InstanceView
from modelmesh.peers.protocol import Member, Peers
from modelmesh.policy.runtimes import Constraint
from modelmesh.policy.thrash import Thrashing
from modelmesh.runtime.protocol import Loaded, Runtime

log = logging.getLogger(__name__)

_DRAIN_POLL_S = 0.02
PREPARE_S = 60.0
"""A start waits no longer for what others have in use to be prepared here."""
HANDOVER_SHARE = 0.6
"""Of the grace period; the rest is for requests that are under way."""
STAY_SHARE = 0.2
STAY_S_MAX = 5.0
"""So long, or for that share of the grace period, an instance that leaves takes requests, since those who send them look at its
readiness now and then only."""


class _Stop(Exception):
    """Ends the task group."""


class Mesh(Desk):
    """One owner, the event loop it was started on. The registrar must have been started before `start`; the data plane is
    started and stopped by the caller, who also passes its events to `handle_events` when its descriptor is readable."""

    def __init__(
        self,
        dataplane: DataPlane,
        runtimes: Runtime | Sequence[Runtime],
        registrar: Registrar,
        clock: Clock,
        journal: Journal,
        rng: random.Random,
        tuning: Tuning | None = None,
        *,
        id: str = "local",
        version: str = "",
        vmodel_owner: str = "",
        constraints: Mapping[str, Constraint] | None = None,
        peers: Peers | None = None,
        fill: bool = False,
    ) -> None:
        """`peers`: the other instances; None: there are none, and nothing is done for them. `fill`: load models that were used
        lately into memory that is free. `constraints` may change."""
        constraints = {} if constraints is None else constraints
        self._dataplane = dataplane
        self._registrar = registrar
        self._journal = journal
        self._mirror = registrar.mirror
        self._clock = clock
        self._tuning = tuning or Tuning()
        self._id = id
        self._version = version
        self.measures = Measures(models_max=self._tuning.model_series_max, now_s=clock.monotonic_s)
        self._started_wall_s = 0.0
        self._histories = Histories(self._tuning.histories_max)
        self._peers = peers
        self._failures = Failures(clock, rng, self._tuning.failures_max, self._tuning.failure_stands_s)
        self._refusals = Refusals(dataplane, clock, journal, self.measures, self._thrashing_of, self._tuning)
        self._others = others = None if peers is None else Others(
            peers, dataplane, registrar, self._histories, self._failures, self._refusals, clock, journal,
            constraints, spawn=self._spawn, settle=self._settle,
        )  # fmt: skip
        abroad = None if others is None else others.abroad
        self._copies = Copies(lambda local: Routes(dataplane, local, abroad), self._histories)
        self._names = Names(self._mirror, dataplane, self._refusals, self._tuning, self._serves_versions)
        self._usage = UsageReader(dataplane, self._copies, self._histories, clock, self._used, self._served)
        shared = Shared(
            dataplane, self._mirror, self._copies, self._failures, self._refusals, clock, journal, self.measures,
            self._tuning, rng, count(1),
            spawn=self._spawn, settle=self._settle, settle_at=self._settle_at, on_gone=self._gone,
            on_loaded=self._loaded, on_measured=self._learn,
            read_usage=lambda: self._usage.read(self._tuning.usage_fresh_s),
            others_try=lambda model: others is not None and others.fails_here(model),
        )  # fmt: skip
        chain = runtimes if isinstance(runtimes, Sequence) else (runtimes,)
        self._sites = Sites([Site(runtime, shared) for runtime in chain], constraints, self._mirror.model)
        self._alarm = Alarm(self._sites, journal)
        self._faults = Faults(
            dataplane, registrar, self._copies, self._names, self._sites, self._failures,
            self._refusals, clock, journal, self.measures, self._tuning,
            spawn=self._spawn, settle=self._settle, others=others,
        )  # fmt: skip
        self._asks = Asks(self._mirror, self._copies, self._sites, settle=self._settle)
        self._condition = Condition(
            self._sites, self._copies, self._usage, clock, draining=lambda: self._draining
        )
        self.overview = Overview(
            self._me, self._mirror, self._copies, self._failures, self._histories, self._condition, journal, clock,
            peers, others,
        )  # fmt: skip
        self._reports = self.overview.reports
        if others is not None:
            others.attach(self._copies, self._asks, self._condition, self.overview)
        self._targets = Targets(self._mirror, self._copies, self._asks)
        self.vmodel_calls = VModels(
            registrar, self, clock, journal, default_owner=vmodel_owner,
            drives=lambda vmodel: others is None or others.provider.keeps(vmodel),
            read_usage=self._usage.read, follow_route=self._copies.routes.follow, measure=self.measures.count,
        )  # fmt: skip
        if others is not None:
            others.announcer.tallies = self.vmodel_calls.canaries.tallies
            others.on_tallies = self.vmodel_calls.canaries.told
            others.on_members = self._members_changed
        self._whole = Whole(
            self._mirror, self._copies, self._sites, self._failures, self._asks, self._condition.load, others
        )
        self.keeping = Keeping(clock, rng, self._whole.keeps)
        self._care = Care(
            self._mirror, self._copies, self._sites, self._usage, self._asks, self._failures, others, self.keeping,
            clock, journal, self.measures, self._tuning,
            spawn=self._spawn, settle=self._settle, draining=lambda: self._draining,
        )  # fmt: skip
        self._faults.on_queueing = self._care.queueing
        self._changes = Changes(
            self._mirror, self._copies, self._sites, self._failures, self._histories, self._names,
            self._care.upkeep, settle=self._settle,
        )  # fmt: skip
        self._recovery = Recovery(
            self._whole, self._mirror, clock, journal, note=self.keeping.note, spawn=self._spawn
        )
        self.keeping.add(self._recovery)
        self._refusals.on_failure = self._recovery.refused
        self._filling = Filling(self._whole, self._mirror, self._histories, clock)
        self._fills = fill
        if others is not None:
            others.on_lost = self._recovery.lost
            others.on_unload = self._filling.leave
            others.provider.on_refused = self._recovery.refused
        self._group: asyncio.TaskGroup | None = None
        self._owner: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._wake: asyncio.TimerHandle | None = None
        self._wake_s = float("inf")
        self._settling = self._unsettled = False
        self._ready = self._draining = False

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self, *, ready: bool = True) -> None:
        """Start the runtimes and serve; without `ready`, the views say so only after `be_ready`. Raises RuntimeUnavailable when
        none can be started, SettingsError."""
        await self._sites.start()
        self._started_wall_s = self._clock.wall_s()
        started = asyncio.Event()
        self._owner = asyncio.create_task(self._own(started), name="mesh")
        await started.wait()
        if self._peers is not None and self._others is not None:
            capacity_bytes = self._others.load_now().capacity_bytes
            await self._peers.update_member(capacity_bytes=capacity_bytes)
            self._condition.prepare(False)
            self._spawn(self._others.run(), "hear other instances")
            await self._peers.start(self._others)
            await self._prepare(self._others)
        self._registrar.on_change(self._targets.follow)
        self._registrar.on_change(self._changes.follow)
        self._targets.start()
        self.vmodel_calls.start()
        self._spawn(self.keeping.run(), "keeping")
        self._care.start()
        if self._fills:
            self._spawn(self._filling.run(), "filling")
        self._ready = ready

    async def _prepare(self, others: Others) -> None:
        """What is in use in other instances is soon asked for here: nobody shall wait until its framework is imported."""
        if types := others.types():
            preparing = self._spawn(self._sites.prepare(types), "prepare")
            await asyncio.wait({preparing}, timeout=PREPARE_S)
        self._condition.prepare(True)
        others.announcer.tick(at_once=True)

    def be_ready(self) -> None:
        """All that had to be there before the first request is there."""
        self._ready = not self._draining

    async def wait(self) -> None:
        """Return when stopped. Raises what ended the mesh otherwise: an ExceptionGroup of bugs."""
        if self._owner is not None:
            await asyncio.shield(self._owner)

    async def drain(self, grace_s: float) -> None:
        """Be not ready, accept no more, and return when what is in flight and parked is done, or after `grace_s`."""
        begun, self._draining, self._ready = self._draining, True, False
        if self._owner is None or self._owner.done():
            return
        ends_s = self._clock.monotonic_s() + grace_s
        if self._others is not None and not begun:
            await self._leave(self._others, grace_s)
        self._dataplane.drain(max(round((ends_s - self._clock.monotonic_s()) * 1000), 0))
        while self._clock.monotonic_s() < ends_s:
            stats = self._dataplane.stats()
            if stats.in_flight == 0 and stats.parked_requests == 0:
                return
            await asyncio.sleep(_DRAIN_POLL_S)

    async def _leave(self, others: Others, grace_s: float) -> None:
        """Requests are still taken: nothing new is placed here, and others load what they would miss."""
        stays_until_s = self._clock.monotonic_s() + min(STAY_SHARE * grace_s, STAY_S_MAX)
        others.announcer.tick(at_once=True)
        await hand_over(self._copies, others, self._clock, self._journal, HANDOVER_SHARE * grace_s)
        others.announcer.give_up_all()
        self._condition.give_up()
        others.announcer.tick(at_once=True)
        if len(others.fleet):
            await asyncio.sleep(max(stays_until_s - self._clock.monotonic_s(), 0.0))

    async def stop(self, grace_s: float) -> None:
        """Drain, end all work, stop the runtimes. Idempotent. Raises what ended the mesh before, if a bug did."""
        ends_s = self._clock.monotonic_s() + grace_s
        await self.drain(grace_s)
        await self.vmodel_calls.stop()
        self._targets.stop()
        self._stopping.set()
        if self._peers is not None:
            await self._peers.stop()
        if self._wake is not None:
            self._wake.cancel()
        if self._owner is not None:
            await asyncio.wait({self._owner})
        self._asks.stop(RuntimeUnavailable("The instance is stopping."))
        left_s = max(ends_s - self._clock.monotonic_s(), 1.0)
        await asyncio.gather(*(site.runtime.stop(left_s) for site in self._sites))
        if self._owner is not None and not self._owner.cancelled() and (error := self._owner.exception()):
            raise error

    async def kill(self) -> None:
        """End all work where it stands, telling nobody: for tests of crashes."""
        self._stopping.set()
        if self._wake is not None:
            self._wake.cancel()
        await self.vmodel_calls.stop()
        self._targets.stop()
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)

    async def _own(self, started: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for site in self._sites:
                    group.create_task(site.run(), name=f"runtime {site.offer.name}")
                group.create_task(self._tick_forever(), name="mesh tick")
                started.set()
                await self._stopping.wait()
                raise _Stop
        except* _Stop:
            pass
        finally:
            self._group = None

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        try:
            if self._group is not None:
                return self._group.create_task(work, name=name)
        except RuntimeError as error:  # its tasks are being cancelled
            log.debug("%s is not begun any more: %s", name, error)
        work.close()
        raise RuntimeUnavailable("The instance is stopping.")

    # --- settling -------------------------------------------------------------------------------------------

    def handle_events(self, events: Sequence[Event]) -> None:
        """What `dataplane.take_events()` gave. Returns once all of it is decided and told to the data plane. Once the instance
        stops, nothing is decided any more."""
        if self._stopping.is_set():
            return
        waited = self._faults.handle(events)
        self._settle()
        if waited:
            self._announce(waited)

    def _announce(self, only: Mapping[str, None] | None = None) -> None:
        for site in self._sites:
            site.admission.announce(only)

    def _settle(self) -> None:
        """Start what may start, publish what changed. Called again from within, it goes round once more."""
        if self._group is None or self._stopping.is_set():
            return
        self._unsettled = True
        if self._settling:
            return
        self._settling = True
        try:
            while self._unsettled:
                self._unsettled = False
                self._care.upkeep.settle()
                for site in self._sites:
                    site.loads.step()
            self._copies.publish()
            if self._others is not None:
                self._others.announcer.flush()
        finally:
            self._settling = False

    def _settle_at(self, at_s: float) -> None:
        """Settle again at that time: something may be evicted then."""
        now_s = self._clock.monotonic_s()
        if self._wake is not None and now_s < self._wake_s <= at_s:
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake_s = at_s
        self._wake = asyncio.get_running_loop().call_later(max(at_s - now_s, 0.0) + 1e-4, self._settle)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self._tuning.tick_s)
            self.tick()

    def tick(self) -> None:
        """Read usage, look at all that waits, and at the policies' own state."""
        self._usage.read()
        self.vmodel_calls.canaries.tick()
        self._faults.refresh()
        for site in self._sites:
            site.tick()
        self._alarm.look(self._clock.monotonic_s())
        self._settle()
        self._announce()
        if self._others is not None:
            self._others.tick()

    def _thrashing_of(self, model: str) -> Thrashing | None:
        return self._sites.thrashing(model, self._copies.get(model), self._clock.monotonic_s())

    def _serves_versions(self) -> bool:
        return any(site.serves_versions for site in self._sites)

    # --- what the parts report ------------------------------------------------------------------------------

    def _used(self, copy: Copy, last_used_ms: int) -> None:
        self._copies.unhold(copy.model, UNTIL_USED)
        self._registrar.used(copy.model, last_used_ms)
        self._care.used(copy.model)
        if self._others is not None:
            self._others.announcer.used(copy.model)

    def _served(self, row: Usage) -> None:
        self.vmodel_calls.canaries.served(row)

    def _loaded(self, copy: Copy, loaded: Loaded) -> None:
        if copy.resumed:
            self._copies.unhold(copy.model, UNTIL_USED)
        self._usage.waited_load(copy)
        if loaded.measured:
            self._learn(copy)

    def _learn(self, copy: Copy) -> None:
        record = self._mirror.model(copy.model)
        if record is None or identity(record) != copy.identity:
            return  # another artefact is registered under its id by now
        size_bytes = copy.size_bytes // max(len(copy.replicas), 1)
        self._registrar.learned(copy.model, size_bytes, round(copy.load_s * 1000), copy.content)

    def _members_changed(self) -> None:
        self.vmodel_calls.transitions.look_again()
        self.keeping.members_changed()

    def _gone(self, copy: Copy) -> None:
        want = copy.want
        if self._others is not None and want is not None and want.only_requests and not copy.holds:
            # They need no copy here: another instance may have it sooner, above all where a server here died.
            copy.want = None
            if not self._others.see_to(copy.model, want.waiting, want.latest_deadline_s):
                copy.want = want
        self._sites.requeue(copy)
        self._asks.gone(copy.model)

    # --- ControlPlane: the instance -------------------------------------------------------------------------

    def instance(self) -> InstanceView:
        return InstanceView(
            id=self._id,
            version=self._version,
            started_wall_s=self._started_wall_s,
            ready=self._ready,
            draining=self._draining,
            cordoned=self._condition.cordoned,
            ledger=self._sites.ledger(),
            models_registered=self._mirror.n_models,
            vmodels_registered=self._mirror.n_vmodels,
            models_loaded=self._copies.n_loaded,
            models_failed=len(self._failures.models()),
            loads_queued=sum(site.loads.n_queued for site in self._sites),
            loads_running=sum(site.loads.n_running for site in self._sites),
            loads_total=sum(site.loads.total for site in self._sites),
            load_failures_total=sum(site.loads.failed_total for site in self._sites),
            evictions_total=sum(site.evictions.total for site in self._sites),
            faults_total=self._faults.total,
            refusals_total=self._refusals.total,
            thrashing=self._alarm.sentence,
            eviction_policy=", ".join(dict.fromkeys(str(site.evictions.policy) for site in self._sites)),
            runtimes=[site.view() for site in self._sites],
        )

    def _me(self) -> Member:
        """How others know it, or would."""
        if self._peers is not None:
            return self._peers.me
        return Member(
            self._id, 0, "", version=self._version, started_wall_ms=round(self._started_wall_s * 1000)
        )

    def check(self) -> None:
        """Raise InvariantBroken when the books contradict each other. Linear in the copies, for tests."""
        check(self._copies, self._sites)

    def pulse(self) -> object:
        """Another value after nearly everything that changes what `check` looks at, for tests."""
        return self._journal.last, pulse(self._copies, self._sites)

    def holder_abroad(self, replica_id: int) -> tuple[str, str] | None:
        """The model and the instance of a replica of another instance, for tests."""
        return None if self._others is None else self._others.abroad.holder(replica_id)

    @property
    def fleet(self) -> Fleet | None:
        """What is known of the other instances; None where there are none by setting."""
        return None if self._others is None else self._others.fleet

    def copy(self, model: str) -> Copy | None:
        """The copy of a model, for tests; None when it is cold."""
        return self._copies.get(model)

    def oldest_use_wall_s(self) -> float:
        """When the least recently used loaded copy was used; 0 when nothing is loaded."""
        return self._reports.oldest_use_wall_s()

    def memory(self) -> Sequence[tuple[str, int, int, int]]:
        return self._sites.memory()
