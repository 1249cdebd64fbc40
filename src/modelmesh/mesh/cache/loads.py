"""Loading: one flight per model, in the order of urgency, within the slots of the runtime and the bytes of the ledger.

    want -> estimate -> queue -> reserve (may evict) -> load -> loaded, or failed and cleaned up

No slot is held while memory is awaited, and no task exists for a load that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any, NamedTuple

from modelmesh.clock import Clock
from modelmesh.errors import (
    LoadTimeout,
    ModelMeshError,
    ModelNotFound,
    ModelTooLarge,
    NoCapacity,
)
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.budget import Budget
from modelmesh.mesh.cache.copies import Copies, Copy, Want
from modelmesh.mesh.cache.estimates import Estimates, spec_of, unexpected
from modelmesh.mesh.cache.evictions import Evictions
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.cache.holds import UNTIL_USED
from modelmesh.mesh.cache.queue import LoadQueue
from modelmesh.mesh.cache.refusals import Refusals
from modelmesh.mesh.cache.room import Room
from modelmesh.mesh.measures import Measures
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State
from modelmesh.policy.backoff import Nature
from modelmesh.policy.urgency import Claim, Why, startable
from modelmesh.registry.records import ModelRecord
from modelmesh.runtime.protocol import Loaded, Runtime
from modelmesh.settings.sizes import format_size


class Running(NamedTuple):
    """A load under way: what it is expected to need still, 0 when that is unknown or over; and how long it has run."""

    copy: Copy
    left_s: float
    ran_s: float


class Loads:
    """`record_of` answers from the mirror; `on_loaded` is told of each new copy after its route is marked;
    `others_try` says whether another instance will try a model that failed here before its requests are told."""

    def __init__(
        self,
        budget: Budget,
        copies: Copies,
        evictions: Evictions,
        runtime: Runtime,
        failures: Failures,
        refusals: Refusals,
        clock: Clock,
        journal: Journal,
        measures: Measures,
        tuning: Tuning,
        *,
        record_of: Callable[[str], ModelRecord | None],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        settle: Callable[[], None],
        on_loaded: Callable[[Copy, Loaded], None],
        others_try: Callable[[str], bool],
    ) -> None:
        self._budget = budget
        self._copies = copies
        self._evictions = evictions
        self._runtime = runtime
        self._failures = failures
        self._refusals = refusals
        self._clock = clock
        self._journal = journal
        self._measures = measures
        self._tuning = tuning
        self._record_of = record_of
        self._spawn = spawn
        self._settle = settle
        self._on_loaded = on_loaded
        self._others_try = others_try
        self._queue = LoadQueue(tuning.asked_patience_s)
        self._estimates = Estimates(
            budget, copies, runtime, tuning,
            record_of=record_of, spawn=spawn, settle=settle,
            on_learned=lambda copy: self.changed(copy.model), on_estimated=self._go_on, on_failed=self._refuse_queued,
        )  # fmt: skip
        self._room = Room(budget, evictions, clock, tuning.set_aside_s, self._refuse_queued)
        self._running: dict[str, tuple[asyncio.Task[None], float, bool]] = {}
        """model -> (its task, when the load began, whether it is gentle)"""
        self._inline: Copy | None = None
        """The copy whose estimating task may go on to load it."""
        self.slots = 0
        """Loads the runtime runs at once; 0 until it has started, and nothing is begun."""
        self.load_timeout_s = 60.0
        self.total = 0
        self.failed_total = 0

    @property
    def n_queued(self) -> int:
        return len(self._queue)

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_gentle(self) -> int:
        """Of those that run, the ones begun as one of perhaps very many."""
        return sum(gentle for *_, gentle in self._running.values())

    @property
    def gentle_slots(self) -> int:
        """As many of those may run at once."""
        return max(self.slots // 2, 1)

    # --- wanting --------------------------------------------------------------------------------------------

    def want(self, model: str, record: ModelRecord) -> Want | None:
        """The want of a model that is not loaded; the caller says in it why, and then calls `changed`. None, with
        QueueFull for those who wait, when too many models are queued."""
        copy = self._copies.get(model)
        now_s = self._clock.monotonic_s()
        if copy is not None:
            return self._copies.want(copy, now_s)
        if len(self._queue) >= self._tuning.queue_max:
            return None
        want = Want(now_s)
        self.queue(model, record, want)
        return want

    def changed(self, model: str) -> None:
        """The want of a model changed: its place in the queue follows. Nobody wanting it any more removes it."""
        copy = self._copies.get(model)
        if copy is None or copy.want is None or copy.state is not State.QUEUED:
            return
        self._queue.push(copy, self._clock.monotonic_s())

    def abandoned(self, model: str) -> None:
        """No request waits for the model any more. A queued load nobody else wants leaves the queue; one that runs goes on,
        because a retry is likely and the work mostly done.

        Where the deadlines were too short for the load itself (not for the queue), it stays wanted: the client was
        told when to come back, and would be refused for ever if nobody loaded it.
        """
        copy = self._copies.get(model)
        if copy is None or copy.want is None:
            return
        want = copy.want
        patience_s = want.latest_deadline_s - want.since_s
        if want.late and copy.load_s > patience_s:
            want.asked = True
        want.waiting = 0
        if copy.state is State.QUEUED and want.unwanted and not copy.holds:
            self._measures.count("modelmesh_loads_abandoned")
            self.drop(copy)
        elif copy.state is State.QUEUED:
            self.changed(model)
        elif copy.state is State.UNLOADING and want.unwanted:
            copy.want = None

    def unwanted(self, copy: Copy) -> None:
        """A hold or a waiting call ended: a queued load nobody wants any more leaves the queue, another is less pressing."""
        want = copy.want
        if copy.state is State.QUEUED and want is not None and want.unwanted and not copy.holds:
            self.drop(copy)
        else:
            self.changed(copy.model)

    def stop(self, error: ModelMeshError) -> None:
        """Tell the calls that wait for a load; the data plane tells its requests itself."""
        for copy, want in self._copies.wanted():
            if copy.budget is self._budget:
                self._answer(want, error)

    def drop(self, copy: Copy) -> None:
        """Take a queued load out."""
        self._queue.discard(copy)
        self._copies.unqueue(copy)

    def cancel(self, copy: Copy) -> None:
        """What is registered under the id is gone or another: a running load is stopped and cleaned up. Whoever waits is told
        when it is gone, and waits on for the other artefact otherwise."""
        copy.cancelled = True
        if copy.calling:
            self._running[copy.model][0].cancel()

    def queue(self, model: str, record: ModelRecord, want: Want) -> None:
        """Queue a cold model with a want; `changed` gives it its place."""
        copy = self._copies.queue(model, record, self._clock.monotonic_s(), want, self._budget)
        self._estimates.want(copy)

    def wanted_again(self, copy: Copy, record: ModelRecord, want: Want | None) -> None:
        """Queue a model whose copy is gone, for those who want it still or while it is held."""
        want = want or Want(self._clock.monotonic_s())
        want.asked = want.asked or bool(copy.holds)
        self.queue(copy.model, record, want)
        self.changed(copy.model)

    def refuse_all(self, error: ModelMeshError) -> None:
        """The runtime cannot load now: whoever waits for a queued load is told."""
        for copy in list(self._queue):
            self.tell(copy, error)
            self.drop(copy)

    # --- the step -------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Start what may start, and make room for what may not. To be called after every change; idempotent."""
        if not self.slots:
            return
        self._estimates.start()
        ledger = self._budget.ledger
        if ledger.free_bytes < 0:
            self._room.pay_overdraft()
            return
        if not self._queue:
            self._evictions.revive_all("nobody waits for its memory any more")
            return
        free_slots = self.slots - len(self._running)
        gentle_slots = self.gentle_slots - self.n_gentle
        first = self._queue.first(self._tuning.lookahead if free_slots else 1, max(gentle_slots, 0) + 1)
        queued = [copy for copy in first if self._estimates.stands(copy)]
        self._estimates.start()
        queued = [copy for copy in queued if not self._room.set_aside(copy)]
        claims = [_claim(copy) for copy in queued]
        started, lacking_bytes = startable(
            claims, free_slots, ledger.free_bytes, self._evictions.incoming_bytes, gentle_slots
        )
        for index in started:
            self._start(queued[index])
        blocked = [copy for index, copy in enumerate(queued) if index not in started]
        if lacking_bytes > 0:
            self._room.make(blocked[0], lacking_bytes)
            return
        if not blocked:
            self._evictions.revive_all("nobody waits for its memory any more")
            return
        n_gentle = sum(claims[index].gentle for index in started)
        if gentle_slots > n_gentle and not self._room.make_by_worth(blocked[0]):
            self._give_up(blocked[0])

    def _give_up(self, copy: Copy) -> None:
        """Nothing is worth less than a model that is only expected to be used."""
        error = NoCapacity(f"There is no memory that model {copy.model} would use better.", model=copy.model)
        self._answer(copy.want, error)
        self.drop(copy)
        self._settle()

    # --- loading --------------------------------------------------------------------------------------------

    async def _go_on(self, copy: Copy) -> None:
        """It is estimated; if it may start now, the task that estimated it loads it."""
        self._inline = copy
        self._settle()
        inline = self._inline is None
        self._inline = None
        if inline:
            await self._load(copy)

    def _start(self, copy: Copy) -> None:
        if not self._copies.begin_loading(copy):
            return
        self._queue.discard(copy)
        now_s = self._clock.monotonic_s()
        want, estimate = copy.want, copy.estimate
        assert want is not None and estimate is not None
        queued_s = now_s - want.since_s
        self._measures.observe("modelmesh_loading_queue_delay_milliseconds", queued_s * 1000, copy.model)
        self._journal.record(
            Did.LOADING,
            copy.model,
            f"Loading, because {_because(want)}; {format_size(estimate.size_bytes)} expected.",
            size_bytes=estimate.size_bytes,
            reserved_bytes=copy.needed_bytes,
            free_bytes=self._budget.ledger.free_bytes,
            waiting=want.waiting,
            queued_s=queued_s,
            load_s=copy.load_s,
            queue=len(self._queue),
            runtime=self._budget.runtime,
        )
        if copy is self._inline:
            self._inline = None
            task = asyncio.current_task()
            assert task is not None
        else:
            task = self._spawn(self._load(copy), f"load {copy.model}")
        self._running[copy.model] = (task, now_s, want.gentle)

    async def _load(self, copy: Copy) -> None:
        record, estimate = self._record_of(copy.model), copy.estimate
        error: ModelMeshError | None = None
        loaded: Loaded | None = None
        try:
            if record is None or estimate is None or copy.cancelled:
                raise ModelNotFound.named(copy.model)
            copy.calling = True
            async with asyncio.timeout(self.load_timeout_s):
                loaded = await self._runtime.load(spec_of(copy.model, record), estimate)
        except TimeoutError:
            error = LoadTimeout(
                f"Loading model {copy.model} was not done within {self.load_timeout_s:.0f} s.",
                model=copy.model,
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not copy.cancelled or task is None:
                raise
            task.uncancel()
            error = ModelNotFound.named(copy.model)
        except ModelMeshError as raised:
            error = raised
        except Exception as raised:
            error = unexpected(copy.model, raised)
        finally:
            _, began_s, _ = self._running.pop(copy.model)
        if copy.cancelled:
            self._evictions.unload(copy)
        elif loaded is not None:
            self._loaded(copy, loaded)
        else:
            assert error is not None
            self._failed(copy, error, self._clock.monotonic_s() - began_s)
        self._settle()

    def _loaded(self, copy: Copy, loaded: Loaded) -> None:
        now_s = self._clock.monotonic_s()
        want = copy.want
        copy.want = None
        copy.resumed = want.waiting if want is not None else 0
        reserved_bytes = copy.needed_bytes
        self._copies.loaded(copy, loaded, now_s)
        self._copies.publish()  # who waits goes on while the rest is noted
        n_passed = self._failures.loaded(copy.model)
        self.total += 1
        if want is not None and want.waiting:
            self._budget.thrash.loaded(copy.model, loaded.size_bytes, now_s)
        self._measures.count("modelmesh_loadmodel")
        self._measures.observe("modelmesh_loadmodel_milliseconds", loaded.load_s * 1000, copy.model)
        if loaded.sizing_s > 0:
            self._measures.observe("modelmesh_model_sizing_milliseconds", loaded.sizing_s * 1000, copy.model)
        self._measures.observe("modelmesh_loaded_model_size_bytes", loaded.size_bytes, copy.model)
        self._journal.record(
            Did.LOADED,
            copy.model,
            f"Loaded in {loaded.load_s * 1000:.0f} ms: {format_size(loaded.size_bytes)}"
            f"{'' if loaded.measured else ', provisionally'}.",
            size_bytes=loaded.size_bytes,
            reserved_bytes=reserved_bytes,
            load_s=loaded.load_s,
            sizing_s=loaded.sizing_s,
            waited_s=now_s - want.since_s if want is not None else 0.0,
            waiting=copy.resumed,
            free_bytes=self._budget.ledger.free_bytes,
        )
        if n_passed:
            self._journal.record(
                Did.REVIVED,
                "",
                f"Model {copy.model} loads again: {n_passed} other{'s' if n_passed > 1 else ''} that failed may, too, and "
                "are tried when they are asked for.",
                models=n_passed,
            )
        self._on_loaded(copy, loaded)
        self._answer(want, None)

    def _failed(self, copy: Copy, error: ModelMeshError, took_s: float) -> None:
        """The load failed: whoever waits is told, what may be left of it is unloaded, its bytes are charged until then."""
        self._fail(copy, error, took_s)
        self.tell(copy, error)
        self._evictions.unload(copy)

    def _refuse_queued(self, copy: Copy, error: ModelMeshError) -> None:
        """A queued load cannot be."""
        if not isinstance(error, ModelNotFound | NoCapacity) or isinstance(error, ModelTooLarge):
            self._fail(copy, error)
        self.tell(copy, error)
        self.drop(copy)

    def _fail(self, copy: Copy, error: ModelMeshError, took_s: float = 0.0) -> None:
        standing = self._failures.record(copy.model, error, copy.identity, took_s=took_s)
        self.failed_total += 1
        self._measures.count("modelmesh_loadmodel_failure")
        if standing.nature is Nature.AWAY and standing.count & (standing.count - 1):
            return  # looked for in vain every second: told the 1st, 2nd, 4th, 8th time
        stands_s = standing.expires_s - standing.at_s
        self._journal.record(
            Did.LOAD_FAILED,
            copy.model,
            f"{error} ({_KINDS[standing.nature]}; tried again in {stands_s:.0f} s at the earliest)",
            failures=standing.count,
            stands_s=stands_s,
            reserved_bytes=copy.needed_bytes,
        )

    # --- telling those who wait -----------------------------------------------------------------------------

    def tell(self, copy: Copy, error: ModelMeshError) -> None:
        """Everybody who waits for this copy gets the error. What was asked for is not asked for any more."""
        want, copy.want = copy.want, None
        self._copies.unhold(copy.model, UNTIL_USED)
        waiting = want.waiting if want is not None else 0
        if not self._others_try(copy.model):
            self._refusals.model(copy.model, error, self._failures.standing(copy.model), waiting)
        self._answer(want, error)

    @staticmethod
    def _answer(want: Want | None, error: ModelMeshError | None) -> None:
        for waiter in want.waiters if want is not None else ():
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    # --- for admission and the tick --------------------------------------------------------------------------

    def running(self) -> list[Running]:
        """The copies being loaded."""
        now_s = self._clock.monotonic_s()
        rows = []
        for model, (_, began_s, _) in self._running.items():
            copy = self._copies.get(model)
            if copy is not None:
                rows.append(Running(copy, max(copy.load_s - (now_s - began_s), 0.0), now_s - began_s))
        return rows

    def waiting(self) -> list[Copy]:
        """Queued copies in no particular order, at most `tuning.announce_max`."""
        return list(islice(self._queue, self._tuning.announce_max))

    def ordered(self) -> list[Copy]:
        """The queued copies, most urgent first."""
        return self._queue.ordered()

    def age(self) -> None:
        """Raise queued loads that were asked for and have waited too long."""
        self._queue.age(self._clock.monotonic_s())


def _because(want: Want) -> str:
    if want.waiting:
        return f"{want.waiting} request{'s wait' if want.waiting > 1 else ' waits'}"
    return _REASONS[want.why]


_REASONS = {
    Why.URGENT: "requests of another instance wait",
    Why.ASKED: "it was asked for",
    Why.SCALE: "it is expected to be used",
    Why.PREWARM: "it was used lately and memory is free",
}


_KINDS = {
    Nature.AWAY: "perhaps only away",
    Nature.PASSING: "perhaps passing",
    Nature.BAD: "pointless to try again before it changes",
}


def _claim(copy: Copy) -> Claim:
    gentle = copy.want is not None and copy.want.gentle
    return Claim(copy.needed_bytes, copy.why < Why.SCALE, gentle)
