"""Making room: choose victims, let their requests end, unload them. Nothing in use is ever cut.

loaded -> retiring (the data plane acquires it no more) -> Retired, clean -> unloading -> gone
                                                        -> timed out: back to loaded, another is chosen
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from math import inf
from typing import Any, Final

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import DataPlane, Retired
from modelmesh.errors import ModelMeshError
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.budget import Budget
from modelmesh.mesh.cache.copies import Copies, Copy, Purpose, Retirement
from modelmesh.mesh.measures import Measures
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State
from modelmesh.policy.eviction import SAMPLE, Policy, Resident, choose, density, residence_s, trim
from modelmesh.runtime.protocol import Runtime
from modelmesh.settings.sizes import format_size

_ATTEMPTS: Final = 4
_SCAN: Final = 1024


class Evictions:
    """Of one runtime. `settle` is called after each change that happened in a task of ours, `on_gone` for each copy that is
    gone."""

    def __init__(
        self,
        budget: Budget,
        copies: Copies,
        dataplane: DataPlane,
        runtime: Runtime,
        clock: Clock,
        journal: Journal,
        measures: Measures,
        tuning: Tuning,
        tokens: Iterator[int],
        *,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        settle: Callable[[], None],
        settle_at: Callable[[float], None],
        on_gone: Callable[[Copy], None],
        read_usage: Callable[[], None],
    ) -> None:
        self._budget = budget
        self._copies = copies
        self._dataplane = dataplane
        self._runtime = runtime
        self._clock = clock
        self._journal = journal
        self._measures = measures
        self._tuning = tuning
        self._spawn = spawn
        self._settle = settle
        self._settle_at = settle_at
        self._on_gone = on_gone
        self._read_usage = read_usage
        self._tokens = tokens
        self._retiring: dict[int, Copy] = {}
        self._retiring_bytes = 0
        self.policy = Policy.RATE_COST
        self.total = 0

    @property
    def incoming_bytes(self) -> int:
        """Bytes that will be free without choosing more victims."""
        return self._budget.ledger.unloading_bytes + self._retiring_bytes

    # --- choosing -------------------------------------------------------------------------------------------

    def evictable_bytes(self, urgent: bool) -> int:
        """What `make_room` could free, now or when minimum residences end."""
        return self._budget.residents.size_bytes + (self._budget.yielding_bytes if urgent else 0)

    def held_bytes(self, urgent: bool) -> int:
        """What loaded copies weigh that may not be evicted, not even for requests that wait when `urgent`."""
        return self._budget.held_bytes + (0 if urgent else self._budget.yielding_bytes)

    def make_room(
        self, lacking_bytes: int, reason: str, *, at_once: bool, urgent: bool, worth: float = inf
    ) -> bool:
        """Retire victims worth at least `lacking_bytes`, the least valuable first; fewer when the others have not been there
        long enough, then `settle` is called when they have. `at_once` (an overdraft) ignores the minimum residence;
        `urgent` lets copies go whose holds yield. With `worth` (seconds of waiting saved per second) none goes unless all that
        are needed may go now; False when keeping them is worth more."""
        self._read_usage()
        now_s = self._clock.monotonic_s()
        victims: list[tuple[Resident, float]] = []
        needed_bytes = lacking_bytes
        while lacking_bytes > 0:
            chosen = self._choose(now_s, at_once)
            if chosen is None and urgent and self._release_hold():
                continue
            if chosen is None:
                break
            self._budget.residents.discard(chosen[0])
            victims.append(chosen)
            lacking_bytes -= chosen[0].size_bytes
        kept = trim(victims, needed_bytes) if lacking_bytes <= 0 else victims
        lost = sum(density(victim, now_s) * victim.size_bytes for victim, _ in kept) if worth < inf else 0.0
        if worth < inf and (lacking_bytes > 0 or lost >= worth):
            kept = []
        leaving = {id(victim) for victim, _ in kept}
        for victim, _ in victims:
            if id(victim) not in leaving:
                self._budget.residents.add(victim)
        for victim, value in kept:
            self._evict(victim, value, reason, needed_bytes, now_s)
        return lost < worth

    def _choose(self, now_s: float, at_once: bool) -> tuple[Resident, float] | None:
        """The least valuable of a sample that is idle and past its minimum residence, with its value; a busy one only when no
        idle one is found. None when nothing may go now; then this is asked again when something may."""
        residents = self._budget.residents

        def may_go(resident: Resident) -> bool:
            return at_once or _settled_s(resident) <= now_s

        busy: tuple[Resident, float] | None = None
        for _ in range(_ATTEMPTS if len(residents) > SAMPLE else 1):
            chosen = choose(residents.sample(self.policy, now_s), may_go)
            if chosen is not None and not chosen[0].in_flight:
                return chosen
            busy = busy or chosen
        sample = residents.first(_SCAN, self.policy, now_s)
        candidates = sample.residents
        chosen = choose(sample, may_go) or busy
        if chosen is None and candidates:
            self._settle_at(min(map(_settled_s, candidates)))
        return chosen

    def _release_hold(self) -> bool:
        """Let go of the copy held longest by holds that yield. False when there is none."""
        for model in self._budget.yielding:
            for hold in self._copies.holds(model):
                self._copies.unhold(model, hold)
            return True
        return False

    def _evict(self, victim: Resident, value: float, reason: str, needed_bytes: int, now_s: float) -> None:
        copy = self._copies.get(victim.model)
        assert copy is victim
        idle_s = _idle_s(copy, now_s)
        free_bytes = self._budget.ledger.free_bytes
        used = f"last used {idle_s:.1f} s ago" if copy.uses.count else "never used"
        self._journal.record(
            Did.EVICTED,
            copy.model,
            f"Evicted {reason}: {used}, it saves the least loading per byte of those compared"
            f"{' (least recently used, by the shadow)' if self.policy is Policy.LRU else ''}; "
            f"it would have stayed with {format_size(needed_bytes)} more.",
            size_bytes=copy.size_bytes,
            requests_per_s=copy.uses.rate_per_s(now_s),
            load_s=copy.load_s,
            value_density=value,
            idle_s=idle_s,
            age_s=now_s - copy.since_s,
            in_flight=copy.in_flight,
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
            policy=str(self.policy),
            runtime=self._budget.runtime,
        )
        self.retire(copy, Purpose.ROOM, reason)

    # --- retiring -------------------------------------------------------------------------------------------

    def retire(self, copy: Copy, purpose: Purpose, reason: str) -> None:
        """Take a loaded copy out of service; it is unloaded once its requests are done. A stronger purpose
        replaces the one it retires for already."""
        if copy.retirement is not None:
            if purpose is not Purpose.ROOM:
                copy.retirement.purpose, copy.retirement.reason = purpose, reason
            return
        replicas = {replica.id for replica in copy.replicas}
        retirement = Retirement(next(self._tokens), replicas, purpose, reason, self._clock.monotonic_s())
        self._copies.retire(copy, retirement)
        if not replicas:
            self.unload(copy)
            return
        self._retiring[retirement.token] = copy
        self._retiring_bytes += copy.size_bytes
        self._call_retire(retirement)

    def _call_retire(self, retirement: Retirement) -> None:
        timeout_ms = round(self._tuning.retire_timeout_s * 1000)
        self._dataplane.retire(
            [(replica, retirement.token) for replica in sorted(retirement.pending)], timeout_ms
        )

    def retired(self, event: Retired) -> None:
        """The data plane's answer. Answers to a retirement that is off are ignored."""
        copy = self._retiring.get(event.token)
        if copy is None or copy.retirement is None:
            return
        if not event.clean:
            self._timed_out(copy)
            return
        copy.retirement.pending.discard(event.replica_id)
        if not copy.retirement.pending:
            self.unload(copy)

    def _timed_out(self, copy: Copy) -> None:
        retirement = copy.retirement
        assert retirement is not None
        copy.in_flight = max(copy.in_flight, 1)
        if retirement.purpose is Purpose.ROOM:
            self.revive(copy, "its requests did not end in time, so another copy is chosen")
            return
        self._forget(copy)
        self._copies.revive(copy)
        if retirement.purpose is Purpose.ASKED:
            self._copies.publish()
        self.retire(copy, retirement.purpose, retirement.reason)

    def overdue(self) -> None:
        """Give up on answers that did not come."""
        limit_s = self._clock.monotonic_s() - self._tuning.retire_timeout_s - self._tuning.retire_answer_s
        for copy in [
            copy for copy in self._retiring.values() if copy.retirement and copy.retirement.since_s < limit_s
        ]:
            self._timed_out(copy)

    def revive(self, copy: Copy, reason: str) -> None:
        """Call off the retirement of a copy that makes room: no unload was sent. Its residence starts anew."""
        assert copy.retirement is not None
        self._forget(copy)
        copy.since_s = self._clock.monotonic_s()
        self._copies.revive(copy)
        self._measures.count("modelmesh_evictions_cancelled")
        self._journal.record(
            Did.REVIVED, copy.model, f"Kept after all: {reason}.", size_bytes=copy.size_bytes
        )

    def revive_all(self, reason: str) -> None:
        """Nobody needs the room any more."""
        for copy in [
            copy
            for copy in self._retiring.values()
            if copy.retirement and copy.retirement.purpose is Purpose.ROOM
        ]:
            self.revive(copy, reason)

    def resized(self, copy: Copy, before_bytes: int) -> None:
        """A copy was measured anew."""
        if copy.retirement is not None:
            self._retiring_bytes += copy.size_bytes - before_bytes

    def moved(self, copy: Copy) -> None:
        """The replicas of a copy changed while it was perhaps retiring: begin anew with those it has."""
        retirement = copy.retirement
        if retirement is None:
            return
        if retirement.purpose is Purpose.ROOM:
            self.revive(copy, "it moved to another worker")
            return
        self._forget(copy)
        self._copies.revive(copy)
        self.retire(copy, retirement.purpose, retirement.reason)

    def lost(self, copy: Copy) -> None:
        """A copy vanished while it was perhaps retiring."""
        self._forget(copy)

    def vanished(self, copy: Copy) -> None:
        """The server says it does not hold the copy: unload it to be sure, without asking its requests to end."""
        self._forget(copy)
        copy.retirement = None
        self.unload(copy)

    def _forget(self, copy: Copy) -> None:
        if copy.retirement is not None and self._retiring.pop(copy.retirement.token, None) is not None:
            self._retiring_bytes -= copy.size_bytes

    # --- unloading ------------------------------------------------------------------------------------------

    def unload(self, copy: Copy) -> None:
        """Send the unload: of a copy that has nothing in flight, or of a load that failed."""
        now_s = self._clock.monotonic_s()
        retirement = copy.retirement
        self._forget(copy)
        failed = copy.state is not State.LOADED
        if retirement is not None and retirement.purpose is Purpose.ROOM:
            self.total += 1
            self._budget.thrash.evicted(copy.model, now_s)
            self._measures.count("modelmesh_model_evicted")
            self._measures.observe(
                "modelmesh_age_at_eviction_milliseconds", _idle_s(copy, now_s) * 1000, copy.model
            )
        reason = (
            "after the failed load" if failed else retirement.reason if retirement else "the runtime lost it"
        )
        self._copies.begin_unload(copy)
        self._copies.publish()
        self._spawn(self._unload(copy, reason, now_s), f"unload {copy.model}")

    async def _unload(self, copy: Copy, reason: str, since_s: float) -> None:
        pause_s = self._tuning.unload_retry_s
        while not await self._try_unload(copy.model):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 60.0)
        took_s = self._clock.monotonic_s() - since_s
        freed_bytes = self._budget.ledger.charged_bytes(copy.model)
        self._copies.unloaded(copy)
        self._measures.count("modelmesh_unloadmodel")
        self._measures.observe("modelmesh_unloadmodel_milliseconds", took_s * 1000, copy.model)
        self._journal.record(
            Did.UNLOADED,
            copy.model,
            f"Unloaded ({reason}): {format_size(freed_bytes)} are free again.",
            size_bytes=freed_bytes,
            unload_s=took_s,
            free_bytes=self._budget.ledger.free_bytes,
        )
        self._on_gone(copy)
        self._settle()

    async def _try_unload(self, model: str) -> bool:
        """False when it failed and must be tried again; its bytes stay charged."""
        try:
            async with asyncio.timeout(self._tuning.unload_timeout_s):
                await self._runtime.unload(model)
            return True
        except TimeoutError:
            reason = f"no answer in {self._tuning.unload_timeout_s:.0f} s"
        except ModelMeshError as error:
            reason = str(error)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        self._measures.count("modelmesh_unloadmodel_attempt_failure")
        self._journal.record(
            Did.WARNED,
            model,
            f"The unload failed ({reason}); its memory stays charged and it is tried again.",
        )
        return False


def _settled_s(resident: Resident) -> float:
    """When its minimum residence ends."""
    return resident.since_s + residence_s(resident.load_s)


def _idle_s(copy: Copy, now_s: float) -> float:
    """Since its last use, or since it was loaded."""
    return now_s - (copy.uses.last_s if copy.uses.count else copy.since_s)
