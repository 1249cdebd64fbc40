"""Canaries: targets of vmodels that get a share of the requests first, and what came of it.

    loaded -> on trial (every instance shares the requests, by the record) -> no worse: the vmodel moves to it
                                                                          -> worse, or lost: it failed, the active model stays

What the copies of an instance served meanwhile is counted there, and told to the others with how it is doing. So all know the
sum; the keeper of the vmodel has it judged (`policy/canary.py`) and ends the trial.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import Usage
from modelmesh.errors import LoadTimeout, ModelMeshError, RuntimeUnavailable, StoreUnavailable
from modelmesh.journal import Did, Journal
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.naming.transitions import LOAD_S, Loader, copies_for
from modelmesh.mesh.naming.vmodel_rules import end_trial_in
from modelmesh.peers.protocol import Tally
from modelmesh.policy.canary import Judgement, Seen, Terms, Verdict, judge
from modelmesh.registry.mirror import ChangedIds
from modelmesh.registry.records import Canary, VModelRecord

TOLD_EACH: Final = 200
"""Trials told of at once; the others have their turn the next time."""
LOOKED_AT_EACH: Final = 100
"""Trials judged in one look; the others in the next."""
LOOK_S: Final = 1.0
PAUSE_S: Final = 5.0
"""After the store or the runtimes could not be reached."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Trial:
    """Of one canary, from the time its record says that it began."""

    vmodel: str
    active: str
    target: str
    canary: Canary
    served: list[Seen] = field(default_factory=lambda: [Seen(), Seen()])
    """By copies here: of the active model, of the target."""
    told: dict[tuple[str, int], tuple[Seen, Seen]] = field(default_factory=dict)
    """The same of other instances in each of their lives. It counts also when they are gone."""
    task: asyncio.Task[None] | None = None
    """What ends it, or brings the target back."""
    rests_until_s: float = 0.0

    def seen(self) -> tuple[Seen, Seen]:
        """What happened to the requests of the active model and of the target, at all instances, as far as known."""
        active, target = self.served
        for there in self.told.values():
            active, target = active + there[0], target + there[1]
        return active, target

    def judge(self, wall_s: float) -> Judgement:
        terms = Terms(self.canary.for_ms / 1000, self.canary.requests, self.canary.slower_max)
        return judge(*self.seen(), wall_s - self.canary.since_ms / 1000, terms)


class Canaries:
    """`drives` says whether this instance ends the trial of a vmodel, as its keeper; `read_usage` has `served` told all that was
    served until now; `follow_route` has the data plane know where a model is, or no more; `measure` counts an event. One owner,
    the event loop: `start`, `tick` regularly, `stop`."""

    def __init__(
        self,
        registrar: Registrar,
        loader: Loader,
        clock: Clock,
        journal: Journal,
        drives: Callable[[str], bool],
        *,
        read_usage: Callable[[], None],
        follow_route: Callable[[str, bool], None],
        measure: Callable[[str], None],
    ) -> None:
        self._registrar = registrar
        self._mirror = registrar.mirror
        self._loader = loader
        self._clock = clock
        self._journal = journal
        self._drives = drives
        self._read_usage = read_usage
        self._follow_route = follow_route
        self._measure = measure
        self._trials: dict[str, Trial] = {}
        """By vmodel; who was looked at moves to the end."""
        self._sides: dict[str, dict[str, int]] = {}
        """Model -> the vmodels on whose trial it is, as the active model (0) or the target (1)."""
        self._told: list[str] = []
        """Vmodels whose turn to be told of is to come."""
        self._looked_s = 0.0
        self._started = False

    def __len__(self) -> int:
        return len(self._trials)

    def start(self) -> None:
        self._started = True
        self.follow(ChangedIds(vmodels=set(self._mirror.unsettled)))

    async def stop(self) -> None:
        """End all work. Idempotent."""
        self._started = False
        tasks = [trial.task for trial in self._trials.values() if trial.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def follow(self, changed: ChangedIds) -> None:
        """The mirror is different."""
        for vmodel in sorted(changed.vmodels):
            record = self._mirror.vmodel(vmodel) if vmodel in self._mirror.unsettled else None
            trial, canary = self._trials.get(vmodel), None if record is None else record.canary
            if record is None or canary is None or not record.on_trial:
                self._end(vmodel)
            elif trial is not None and _same(trial, record, canary):
                trial.canary = canary
            else:
                self._end(vmodel)
                self._begin(Trial(vmodel, record.active, record.target, canary))

    def _begin(self, trial: Trial) -> None:
        self._read_usage()  # what was served before is none of its business
        self._trials[trial.vmodel] = trial
        for side, model in enumerate((trial.active, trial.target)):
            self._sides.setdefault(model, {})[trial.vmodel] = side
        self._follow_route(trial.target, True)

    def _end(self, vmodel: str) -> None:
        trial = self._trials.pop(vmodel, None)
        if trial is None:
            return
        if trial.task is not None and trial.task is not asyncio.current_task():
            trial.task.cancel()
        for model in (trial.active, trial.target):
            vmodels = self._sides[model]
            del vmodels[vmodel]
            if not vmodels:
                del self._sides[model]
        if all(other.target != trial.target for other in self._trials.values()):
            self._follow_route(trial.target, False)

    # --- counting -------------------------------------------------------------------------------------------

    def served(self, row: Usage) -> None:
        """Copies here served requests."""
        for vmodel, side in self._sides.get(row.model, {}).items():
            seen = Seen(row.requests, row.errors, row.execution_us / 1e6)
            self._trials[vmodel].served[side] += seen

    def tallies(self) -> tuple[Tally, ...]:
        """What others are to be told next. All trials have their turn."""
        if not self._told:
            self._told = list(self._trials)
        vmodels, self._told = self._told[:TOLD_EACH], self._told[TOLD_EACH:]
        return tuple(_tally(trial) for vmodel in vmodels if (trial := self._trials.get(vmodel)) is not None)

    def told(self, instance: str, epoch: int, tallies: tuple[Tally, ...]) -> None:
        """Another instance told what its copies served since a trial began."""
        for tally in tallies:
            trial = self._trials.get(tally.vmodel)
            if trial is not None and trial.canary.since_ms == tally.since_ms:
                trial.told[instance, epoch] = (
                    Seen(tally.requests, tally.errors, tally.execution_ms / 1000),
                    Seen(tally.canary_requests, tally.canary_errors, tally.canary_execution_ms / 1000),
                )

    def trial(self, vmodel: str) -> Trial | None:
        """The trial that is on."""
        return self._trials.get(vmodel)

    # --- judging --------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once a second, look at trials that this instance is to end."""
        now_s = self._clock.monotonic_s()
        if now_s < self._looked_s + LOOK_S or not self._started or self._registrar.read_only:
            return
        self._looked_s = now_s
        for vmodel in list(islice(self._trials, LOOKED_AT_EACH)):
            trial = self._trials[vmodel] = self._trials.pop(vmodel)
            if trial.task is None and now_s >= trial.rests_until_s and self._drives(vmodel):
                self._look(trial)

    def _look(self, trial: Trial) -> None:
        judgement = trial.judge(self._clock.wall_s())
        if judgement.verdict is not Verdict.GO_ON:
            fault = judgement.reason if judgement.verdict is Verdict.ROLL_BACK else ""
            self._work(trial, self._finish(trial, fault, judgement.reason))
        elif not self._loader.copies(trial.target):
            self._work(trial, self._bring_back(trial))

    def _work(self, trial: Trial, work: Coroutine[Any, Any, None]) -> None:
        trial.task = asyncio.create_task(work, name=f"canary of {trial.vmodel}")
        trial.task.add_done_callback(partial(self._worked, trial))

    def _worked(self, trial: Trial, task: asyncio.Task[None]) -> None:
        trial.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("The trial of the canary of %s went wrong.", trial.vmodel, exc_info=error)
            trial.rests_until_s = self._clock.monotonic_s() + LOAD_S

    async def _finish(self, trial: Trial, fault: str, reason: str) -> None:
        vmodel, since_ms = trial.vmodel, trial.canary.since_ms
        active, target = trial.seen()
        try:
            ended = await self._registrar.transact(lambda draft: end_trial_in(draft, vmodel, since_ms, fault))
            if not ended:  # another instance was faster, and the mirror behind
                await self._registrar.wait_current()
                return
        except StoreUnavailable as error:
            log.warning("The trial of the canary of %s waits for the store to end: %s", vmodel, error)
            trial.rests_until_s = self._clock.monotonic_s() + PAUSE_S
            return
        said = (
            f"{trial.active} goes on serving alone, the canary {trial.target} is given up: {reason}"
            if fault
            else f"The canary {trial.target} takes over from {trial.active}: {reason}"
        )
        self._measure("modelmesh_canaries_rolled_back" if fault else "modelmesh_canaries_promoted")
        self._journal.record(
            Did.ROLLED_BACK if fault else Did.PROMOTED,
            vmodel,
            said,
            share=trial.canary.share,
            requests=active.requests,
            errors=active.errors,
            canary_requests=target.requests,
            canary_errors=target.errors,
            trial_s=self._clock.wall_s() - since_ms / 1000,
        )

    async def _bring_back(self, trial: Trial) -> None:
        """Its copies are gone: load it again. One that cannot be has failed."""
        target = trial.target
        try:
            async with asyncio.timeout(LOAD_S):
                await self._loader.bring(
                    target,
                    copies_for(trial.canary.share, self._loader.copies(trial.active)),
                    beside=trial.active,
                    why=f"it is the canary of the vmodel {trial.vmodel}",
                )
        except TimeoutError:
            late = LoadTimeout(f"Model {target} was not loaded within {LOAD_S:g} s.", model=target)
            await self._finish(trial, str(late), str(late))
        except RuntimeUnavailable as error:
            log.info("The canary of %s waits to be loaded again: %s", trial.vmodel, error)
            trial.rests_until_s = self._clock.monotonic_s() + PAUSE_S
        except ModelMeshError as error:
            fault = f"Its copies were lost, and it could not be loaded again: {error}"
            await self._finish(trial, fault, fault)


def _same(trial: Trial, record: VModelRecord, canary: Canary) -> bool:
    """Whether it is still that trial, perhaps by other terms."""
    models = (trial.active, trial.target) == (record.active, record.target)
    return models and trial.canary.since_ms == canary.since_ms


def _tally(trial: Trial) -> Tally:
    active, target = trial.served
    return Tally(
        trial.vmodel, trial.canary.since_ms,
        active.requests, active.errors, round(active.execution_s * 1000),
        target.requests, target.errors, round(target.execution_s * 1000),
    )  # fmt: skip
