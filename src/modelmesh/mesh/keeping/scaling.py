"""More copies of models in demand, in other instances, and fewer again: seen and decided by those that hold them.

    requests queue, or slots are busy ─▶ the runtime's own servers first ─▶ the keeper places one more copy (or more), at once
    a spare copy, cool for a while    ─▶ it goes, one after the other, never below what is to be kept
    the only copy of a model in use   ─▶ a second one where memory is free, in case its instance is lost

The decisions are `policy.copies`; the keeper counts, so that holders who see the same at once make one copy of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import islice
from math import exp
from typing import Any, Final

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import Queueing
from modelmesh.errors import ModelMeshError
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.copies import Copies, Copy, Purpose
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.cache.usage import UsageReader
from modelmesh.mesh.measures import Measures
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State
from modelmesh.policy.copies import Holder, SlotUse, grown, kept, shrinks, spared_s, waiting
from modelmesh.policy.placement import HORIZON_S, TIE_S
from modelmesh.policy.urgency import Why

AT_ONCE: Final = 4
"""Models that this instance has more copies made of at a time."""
QUICK_S: Final = 0.05
"""After a look that found requests waiting, the next ones come so soon."""
LASTING_S: Final = 0.1
"""Requests must have waited at all looks for so long, and not fewer each time: what begins with one is soon many, or gone."""
MANY: Final = 8
"""Requests that wait for a slot are a demand though nothing is known yet of how long each takes. Fewer may wait for other models
of the server, as in a crowd that asks for many cold ones."""
EASED: Final = 0.9
"""A queue that shrank to this share from one look to the next is a burst that passes."""
TOLD_S: Final = 0.12
"""What the data plane told of a queue counts for so long; it tells it anew every 50 ms."""
MEAN_S: Final = 5.0
"""Time constant of the mean use."""
SETTLE_S: Final = 2.0
"""What a new copy does is seen after this."""
SPREAD_S: Final = 5.0
"""The runtime's own servers have so long to take a model that is in demand."""
PAUSE_S: Final = (5.0, 300.0)
"""After no copy could be had: first, and at most."""
SPARES_EACH: Final = 200
USED_EACH: Final = 50
"""Spare and used copies looked at in one slow look."""
KNOWN_S: Final = 10.0
"""A copy that is here for so long shows how its model is used."""
FULL_PAUSE_S: Final = 30.0
"""Where no memory was free for a second copy, it is not asked for again before this."""


@dataclass(slots=True)
class _Watch:
    """A copy that is or was busy."""

    busy_s: float
    looked_s: float
    mean_share: float = 0.0
    queued: int = 0
    """At the last look."""
    waits_s: float | None = None
    """Since when requests wait, at each look not fewer."""
    told: Queueing | None = None
    told_s: float = 0.0
    news: bool = False
    """It was told since the last look."""
    replicas: int = 0
    not_before_s: float = 0.0
    tries: int = 0
    """How often in a row no copy could be had."""
    asking: bool = False


class Scaling:
    """`holders_of` names the instances that hold a model and stay, this one too."""

    def __init__(
        self,
        copies: Copies,
        sites: Sites,
        usage: UsageReader,
        others: Others,
        clock: Clock,
        journal: Journal,
        measures: Measures,
        tuning: Tuning,
        *,
        holders_of: Callable[[str], list[Holder]],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        settle: Callable[[], None],
    ) -> None:
        self._copies = copies
        self._sites = sites
        self._usage = usage
        self._others = others
        self._clock = clock
        self._journal = journal
        self._measures = measures
        self._tuning = tuning
        self._holders_of = holders_of
        self._spawn = spawn
        self._settle = settle
        self._watched: dict[str, _Watch] = {}
        self._spare: dict[str, float] = {}
        """Copies here without which others serve the model, and since when they were cool."""
        self._used: dict[str, None] = {}
        """Models used here since their last slow look."""
        self._asking = 0
        self._seconding = False
        self._no_second_before_s = 0.0
        self._slow_s = 0.0
        self._stirred = asyncio.Event()

    # --- notes ----------------------------------------------------------------------------------------------

    def queueing(self, event: Queueing) -> None:
        """The data plane told that requests wait for slots of a model."""
        copy = self._copies.get(event.model)
        if copy is None or copy.state is not State.LOADED:
            return
        watch = self._watch(copy)
        watch.told, watch.told_s, watch.news = event, self._clock.monotonic_s(), True
        self._stirred.set()

    def used(self, model: str) -> None:
        """It was used here."""
        self._used[model] = None

    def spare(self, model: str, is_spare: bool) -> None:
        """Whether others serve the model without the copy here."""
        if not is_spare:
            self._spare.pop(model, None)
        else:
            self._spare.setdefault(model, self._clock.monotonic_s())

    # --- looking --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at what is busy until cancelled: soon again while requests wait, at once when a queue is told of."""
        while True:
            some_wait = any(watch.waits_s is not None for watch in self._watched.values())
            try:
                async with asyncio.timeout(QUICK_S if some_wait else self._tuning.look_s):
                    await self._stirred.wait()
                self._stirred.clear()
            except TimeoutError:
                pass
            self.look()

    def look(self) -> None:
        """Judge all copies that are busy, and once a second some of those that are not."""
        self._usage.read(QUICK_S / 2)
        now_s = self._clock.monotonic_s()
        for active in self._usage.take_active():
            if active.state is State.LOADED:
                self._watch(active)
        for model, watch in list(self._watched.items()):
            copy = self._copies.get(model)
            if copy is None or copy.state is not State.LOADED or copy.retirement is not None:
                del self._watched[model]
            else:
                self._judge(copy, watch, now_s)
        if now_s - self._slow_s >= 1.0:
            self._slow_s = now_s
            self._look_at_spares(now_s)
            self._look_at_used(now_s)

    def _watch(self, copy: Copy) -> _Watch:
        watch = self._watched.get(copy.model)
        if watch is None:
            watch = _Watch(copy.busy_s, self._clock.monotonic_s(), replicas=len(copy.replicas))
            self._watched[copy.model] = watch
        return watch

    def _judge(self, copy: Copy, watch: _Watch, now_s: float) -> None:
        before, news = watch.queued, watch.news
        use = self._use(copy, watch, now_s)
        if len(copy.replicas) != watch.replicas:
            watch.replicas, watch.waits_s = len(copy.replicas), None
            watch.not_before_s = max(watch.not_before_s, now_s + SETTLE_S)
        if watch.told is not None and not news:
            return
        eased = use.queued < EASED * before
        if not use.queued or eased:
            watch.waits_s = None
        elif watch.waits_s is None:
            watch.waits_s = now_s
        waited_s = 0.0 if watch.waits_s is None else now_s - watch.waits_s
        if not copy.execution_s and use.queued >= MANY * use.slots:
            # What its requests take is not known before the first are done: those that wait have waited for so long.
            use = use._replace(wait_s=max(use.wait_s, waited_s))
        self._grow(copy, watch, use, waited_s, now_s)
        if not use.queued and use.mean_share < 0.05 and not watch.asking and now_s >= watch.not_before_s:
            del self._watched[copy.model]

    def _use(self, copy: Copy, watch: _Watch, now_s: float) -> SlotUse:
        """How the copy was used since the last look, which this ends."""
        slots, reported = self._slots(copy)
        passed_s = now_s - watch.looked_s
        busy_s = max(copy.busy_s - watch.busy_s, 0.0)  # a copy that was loaded anew begins at nothing
        told = watch.told if now_s - watch.told_s <= TOLD_S else None
        if not slots:
            share = 0.0
        elif reported:
            share = busy_s / passed_s / slots if passed_s > 0.0 else 0.0
        else:
            share = min(copy.in_flight / slots, 1.0)
        watch.mean_share += (1.0 - exp(-passed_s / MEAN_S)) * (share - watch.mean_share)
        watch.looked_s, watch.busy_s, watch.told, watch.news = now_s, copy.busy_s, told, False
        queued = max(copy.in_flight - slots, 0) if slots and reported else 0
        queued += 0 if told is None else told.queued
        expected_s = queued * copy.execution_s / max(slots, 1)
        wait_s = max(expected_s, 0.0 if told is None else told.oldest_ms / 1000)
        watch.queued = queued
        return SlotUse(slots, share, watch.mean_share, queued, wait_s)

    def _slots(self, copy: Copy) -> tuple[int, bool]:
        """How many requests it executes at once, and whether its servers report what each takes."""
        each = self._sites.holding(copy).replica_slots
        if each:
            return each * len(copy.replicas), True
        bounds = [replica.max_concurrency for replica in copy.replicas]
        return (0 if 0 in bounds else sum(bounds)), False

    # --- more -----------------------------------------------------------------------------------------------

    def _grow(self, copy: Copy, watch: _Watch, use: SlotUse, waited_s: float, now_s: float) -> None:
        if watch.asking or now_s < watch.not_before_s or self._asking >= AT_ONCE:
            return
        may_spread = self._may_spread(copy)
        lasting = waited_s >= (SPREAD_S if may_spread else LASTING_S - 1e-6)
        if not lasting and may_spread:
            return
        holders = self._holders_of(copy.model)
        if len(holders) > 1 and now_s < copy.since_s + SETTLE_S:
            return
        maximum = copy.keep.at_most(1 + len(self._others.fleet))
        target = grown(len(holders), use, lasting=lasting, maximum=maximum)
        if target <= len(holders) or self._others.fleet.loading(copy.model):
            return
        watch.asking = True
        self._asking += 1
        why = (
            f"{use.queued} requests wait for a slot of {use.slots}"
            if use.queued
            else f"{use.mean_share:.0%} of its {use.slots} slots are in use"
        )
        self._journal.record(
            Did.SCALED,
            copy.model,
            f"{_copies(target)} are wanted instead of {len(holders)}: {why}.",
            copies=len(holders),
            wanted=target,
            queued=use.queued,
            wait_s=use.wait_s,
            share=use.share,
            mean_share=use.mean_share,
            slots=use.slots,
            execution_s=copy.execution_s,
        )
        worth_s = copy.priority * HORIZON_S * waiting(use)
        self._spawn(self._more(copy, watch, target, worth_s, why), f"scale {copy.model}")

    def _may_spread(self, copy: Copy) -> bool:
        """Whether other servers of its runtime can take it, which its runtime sees to (`runtime.spreading`)."""
        site = self._sites.holding(copy)
        free = site.replica_slots > 0 and len(copy.replicas) < site.budget.n_targets
        return free and site.budget.ledger.free_bytes >= copy.size_bytes // max(len(copy.replicas), 1)

    async def _more(self, copy: Copy, watch: _Watch, target: int, worth_s: float, why: str) -> None:
        began_s = self._clock.monotonic_s()
        try:
            await self._others.have_copies(
                copy.model, target, why, need=Why.URGENT, worth_s=worth_s, execution_s=copy.execution_s
            )
        except ModelMeshError as error:
            first_s, most_s = PAUSE_S
            pause_s = min(first_s * 2.0**watch.tries, most_s)
            watch.tries += 1
            watch.not_before_s = self._clock.monotonic_s() + pause_s
            self._journal.record(
                Did.SCALED, copy.model, f"No more copies for the next {pause_s:.0f} s: {error}", wanted=target
            )
        else:
            watch.tries = 0
            watch.not_before_s = self._clock.monotonic_s() + SETTLE_S
            self._measures.count("modelmesh_scaled_up")
            self._journal.record(
                Did.SCALED,
                copy.model,
                f"{_copies(len(self._holders_of(copy.model)))} serve it now, because {why}.",
                took_s=self._clock.monotonic_s() - began_s,
                wanted=target,
            )
        finally:
            watch.asking = False
            self._asking -= 1

    # --- fewer ----------------------------------------------------------------------------------------------

    def _look_at_spares(self, now_s: float) -> None:
        for model in list(islice(self._spare, SPARES_EACH)):
            since_s = self._spare.pop(model)
            copy = self._copies.get(model)
            if copy is None or copy.state is not State.LOADED or copy.retirement is not None:
                continue
            holders = self._holders_of(model)
            cool = self._is_cool(copy, holders, now_s)
            self._spare[model] = since_s = since_s if cool else now_s
            stays_s = max(self._tuning.spare_s, 10.0 * copy.load_s)
            too_many = bool(copy.keep.max_copies) and len(holders) > copy.keep.max_copies
            if not copy.holds and (too_many or now_s - max(since_s, copy.since_s) >= stays_s):
                self._give_up(copy, holders)

    def _is_cool(self, copy: Copy, holders: list[Holder], now_s: float) -> bool:
        """Whether the others do without it. Where the copy is the second of two, that is also a question of what it is worth."""
        model, watch = copy.model, self._watched.get(copy.model)
        use = SlotUse(0, 0.0, 0.0, 0, 0.0)
        if watch is not None:
            use = SlotUse(0, 0.0, watch.mean_share, watch.queued, 0.0)
        peers = self._others.fleet.staying(model)
        rest = [peer.load.busyness for peer in peers if peer.load is not None]
        if not shrinks(len(holders), use, rest):
            return False
        spared = spared_s(copy.history.rate_per_s(now_s), copy.load_s)
        return len(holders) > 2 or spared <= TIE_S

    def _give_up(self, copy: Copy, holders: list[Holder]) -> None:
        """Unload the copy here, if it is the one to go next."""
        if self._others.me.id in kept(copy.model, holders, len(holders) - 1):
            return
        fewer = len(holders) - 1
        reason = f"{_copies(fewer)} elsewhere serve it" if fewer > 1 else "a copy elsewhere serves it"
        self._spare.pop(copy.model, None)
        self._measures.count("modelmesh_scaled_down")
        self._journal.record(
            Did.SCALED,
            copy.model,
            f"One copy fewer, the one here, because {reason}.",
            copies=len(holders),
            size_bytes=copy.size_bytes,
        )
        self._sites.holding(copy).evictions.retire(copy, Purpose.ASKED, reason)
        self._settle()

    # --- a second one ---------------------------------------------------------------------------------------

    def _look_at_used(self, now_s: float) -> None:
        for model in list(islice(self._used, USED_EACH)):
            del self._used[model]
            copy = self._copies.get(model)
            if copy is None or self._seconding or now_s < self._no_second_before_s:
                continue
            spared = spared_s(_known_rate_per_s(copy, now_s), copy.load_s)
            if spared > TIE_S and copy.keep.at_most(2) == 2 and self._is_only(copy):
                self._seconding = True
                self._spawn(self._second(copy, spared), f"second copy of {model}")

    def _is_only(self, copy: Copy) -> bool:
        there = any(copy.model in peer.copies for peer in self._others.fleet)
        return copy.state is State.LOADED and copy.retirement is None and not there

    async def _second(self, copy: Copy, spared: float) -> None:
        try:
            await self._others.have_copies(
                copy.model, 2, "it is in use and there is only one", need=Why.PREWARM, worth_s=spared
            )
            self._measures.count("modelmesh_scaled_up")
        except ModelMeshError as error:
            self._no_second_before_s = self._clock.monotonic_s() + FULL_PAUSE_S
            self._journal.record(Did.SCALED, copy.model, f"No second copy for now: {error}", spared_s=spared)
        finally:
            self._seconding = False


def _known_rate_per_s(copy: Copy, now_s: float) -> float:
    """How often it is used, 0 as long as it was not there for long enough to tell: a few requests in a row are no rate."""
    here_s = now_s - copy.since_s
    if here_s < KNOWN_S:
        return 0.0
    return min(copy.history.rate_per_s(now_s), copy.history.count / here_s)


def _copies(n: int) -> str:
    return "1 copy" if n == 1 else f"{n} copies"
