"""One runtime and what belongs to it: its budget, loads, evictions, admission and events.

not started -> running
            -> down (the start failed; tried again) -> running
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import DataPlane
from modelmesh.errors import ModelMeshError, RuntimeUnavailable
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.admission import Admission
from modelmesh.mesh.cache.budget import Budget
from modelmesh.mesh.cache.copies import Copies, Copy
from modelmesh.mesh.cache.evictions import Evictions
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.cache.loads import Loads
from modelmesh.mesh.cache.refusals import Refusals
from modelmesh.mesh.cache.runtime_events import RuntimeEvents
from modelmesh.mesh.measures import Measures
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import RuntimeView
from modelmesh.registry.mirror import Mirror
from modelmesh.runtime.protocol import Loaded, Runtime
from modelmesh.settings.sizes import format_size

_RETRY_S: Final = 1.0
_RETRY_S_MAX: Final = 30.0
HELD_SHARE: Final = 0.8
"""Of the memory; beyond it, models that may not be evicted crowd the others out."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sites of an instance have in common, and whom they tell."""

    dataplane: DataPlane
    mirror: Mirror
    copies: Copies
    failures: Failures
    refusals: Refusals
    clock: Clock
    journal: Journal
    measures: Measures
    tuning: Tuning
    rng: random.Random
    tokens: Iterator[int]
    """Of retirements, unique in the instance."""
    spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    settle: Callable[[], None]
    settle_at: Callable[[float], None]
    on_gone: Callable[[Copy], None]
    on_loaded: Callable[[Copy, Loaded], None]
    on_measured: Callable[[Copy], None]
    read_usage: Callable[[], None]
    others_try: Callable[[str], bool]


class Site:
    """`begin` and `started` bring the runtime up once; `run` keeps trying, and follows its events until cancelled."""

    def __init__(self, runtime: Runtime, shared: Shared) -> None:
        self.runtime = runtime
        self.offer = runtime.offer()
        self.budget = Budget(self.offer.name, shared.rng)
        self.down: RuntimeUnavailable | None = None
        """Why its models are refused: the runtime could not be started; None while it runs or starts."""
        self.serves_versions = False
        self.replica_slots = 0
        """See `RuntimeInfo`."""
        self._shared = shared
        self._starting: asyncio.Task[None] | None = None
        self._warned_of_held = False
        self.evictions = Evictions(
            self.budget, shared.copies, shared.dataplane, runtime, shared.clock, shared.journal, shared.measures,
            shared.tuning, shared.tokens,
            spawn=shared.spawn, settle=shared.settle, settle_at=shared.settle_at, on_gone=shared.on_gone,
            read_usage=shared.read_usage,
        )  # fmt: skip
        self.loads = Loads(
            self.budget, shared.copies, self.evictions, runtime, shared.failures, shared.refusals, shared.clock,
            shared.journal, shared.measures, shared.tuning,
            record_of=shared.mirror.model, spawn=shared.spawn, settle=shared.settle, on_loaded=shared.on_loaded,
            others_try=shared.others_try,
        )  # fmt: skip
        self.admission = Admission(
            self.budget, shared.copies, self.loads, shared.dataplane, shared.refusals, shared.clock, shared.tuning
        )  # fmt: skip
        self._events = RuntimeEvents(
            self.budget, shared.copies, self.evictions, shared.failures, shared.journal, shared.measures,
            on_gone=shared.on_gone, on_measured=shared.on_measured,
        )  # fmt: skip

    # --- life -----------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.loads.slots > 0

    def begin(self) -> asyncio.Task[None]:
        """Start the runtime, unless that was begun."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name=f"start of runtime {self.offer.name}")
        return self._starting

    async def _start(self) -> None:
        info = await self.runtime.start()
        self.budget.ledger.adopt(info.capacity_bytes, 0)
        self.serves_versions, self.replica_slots = info.serves_versions, info.replica_slots
        self.loads.load_timeout_s = info.load_timeout_s
        self.loads.slots = info.max_loads
        self.down = None

    async def cancel(self) -> None:
        """End a start under way."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)

    async def run(self) -> None:
        """Have the runtime started, trying again with growing pauses, and act on what it tells."""
        pause_s = _RETRY_S
        while not await self._is_started(pause_s):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_S_MAX)
        self._shared.settle()
        await self._follow()

    async def _is_started(self, pause_s: float) -> bool:
        task = self.begin()
        try:
            await asyncio.shield(task)
            return True
        except asyncio.CancelledError:
            await self.cancel()
            raise
        except ModelMeshError as error:
            self._starting = None
            self._refuse(error, pause_s)
            return False

    def _refuse(self, error: ModelMeshError, retry_after_s: float) -> None:
        self.down = RuntimeUnavailable(
            f"The runtime {self.offer.name} could not be started: {error} It is tried again.",
            retry_after_s=retry_after_s,
        )
        self._shared.journal.record(Did.WARNED, "", str(self.down), runtime=self.offer.name)
        self.loads.refuse_all(self.down)
        self._shared.settle()

    async def _follow(self) -> None:
        while True:
            try:
                events = await self.runtime.next_events()
            except RuntimeUnavailable as error:
                reason = f"The runtime {self.offer.name} tells nothing: {error}"
                self._shared.journal.record(Did.WARNED, "", reason, runtime=self.offer.name)
                await asyncio.sleep(_RETRY_S)
                continue
            for event in events:
                self._events.handle(event)
            self._shared.settle()

    # --- the tick -------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look at what waits for an answer or a turn, and at which policy decides."""
        self.evictions.overdue()
        self.loads.age()
        self._watch_held()
        ledger, shadow = self.budget.ledger, self.budget.shadow
        shadow.resize(ledger.capacity_bytes - ledger.unattributed_bytes, self._shared.mirror.n_models)
        if shadow.policy is not self.evictions.policy:
            self.evictions.policy = shadow.policy
            self._shared.journal.record(
                Did.WARNED,
                "",
                f"Eviction goes by {shadow.policy} from now on, which would have spent less time on loading lately.",
                lru_load_s=shadow.lru_load_s,
                rate_cost_load_s=shadow.rate_cost_load_s,
                runtime=self.offer.name,
            )

    def _watch_held(self) -> None:
        """Say so when models that may not be evicted leave little for all others."""
        held_bytes, capacity_bytes = self.budget.held_bytes, self.budget.ledger.capacity_bytes
        if held_bytes < HELD_SHARE / 2 * capacity_bytes:
            self._warned_of_held = False
        if self._warned_of_held or held_bytes <= HELD_SHARE * capacity_bytes:
            return
        self._warned_of_held = True
        self._shared.journal.record(
            Did.WARNED,
            "",
            f"Models that are pinned, or of which copies are kept, hold {format_size(held_bytes)} of the "
            f"{format_size(capacity_bytes)} that models may use: the others have to share the rest.",
            held_bytes=held_bytes,
            capacity_bytes=capacity_bytes,
            runtime=self.offer.name,
        )

    def view(self) -> RuntimeView:
        return RuntimeView(
            name=self.offer.name,
            model_types=tuple(sorted(self.offer.model_types)),
            labels=tuple(sorted(self.offer.labels)),
            running=self.running,
            reason="" if self.down is None else str(self.down),
            ledger=self.budget.ledger.view(),
            memory=tuple(self.runtime.memory()) if self.running else (),
        )
