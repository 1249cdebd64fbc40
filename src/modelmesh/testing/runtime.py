"""A runtime without processes: models are numbers, and faults are scripted.

It accounts for its memory as a real one does, from its own books, so that a test can compare them with the mesh's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from modelmesh.dataplane.protocol import Replica, Target
from modelmesh.errors import Code, LoadFailed, ModelMeshError, RuntimeUnavailable
from modelmesh.policy.runtimes import Offer
from modelmesh.runtime.ids import Ids
from modelmesh.runtime.protocol import (
    CapacityChanged,
    CopyLost,
    Estimate,
    Loaded,
    ModelSpec,
    ReplicasChanged,
    RuntimeEvent,
    RuntimeInfo,
    SizeChanged,
    TargetsChanged,
)

FAKE: Final = Offer("fake", frozenset({"fake"}))


@dataclass(slots=True)
class Artefact:
    """What a model is made of. `estimate_bytes` 0: the estimate is right."""

    size_bytes: int = 1000
    load_s: float = 0.01
    unload_s: float = 0.001
    estimate_bytes: int = 0
    peak_factor: float = 1.0
    content: str = ""
    provisional: bool = False
    """The size is told late, by SizeChanged, when `measure` is called."""
    error: ModelMeshError | None = None
    """Loading fails with it, after `load_s`."""
    estimate_error: ModelMeshError | None = None
    unload_errors: int = 0
    """How many unloads fail before one succeeds."""
    sizing_s: float = 0.0
    """What finding out the size is said to have taken."""
    max_concurrency: int = 0
    """Requests that a replica takes at once; 0: any number."""
    base_bytes: int = 0
    """The server grows by this at the first load of any model with the same `type`."""
    faulty: float = 0.0
    """The share of its requests that fail."""


class FakeRuntime:
    """Keeps the promises of `runtime.protocol.Runtime`. `artefact_of` answers for a spec; None is an unknown artefact."""

    def __init__(
        self,
        artefact_of: Callable[[ModelSpec], Artefact | None],
        *,
        budget_bytes: int = 100_000,
        max_loads: int = 2,
        targets: int = 2,
        load_timeout_s: float = 10.0,
        address: str = "unix:/fake/{}",
        offer: Offer = FAKE,
        ids: Ids | None = None,
        replica_slots: int = 0,
    ) -> None:
        """`address` is that of a server; its number takes the place of the braces."""
        self._address = address
        self._artefact_of = artefact_of
        self.budget_bytes = budget_bytes
        self.max_loads = max_loads
        self.load_timeout_s = load_timeout_s
        self.serves_versions = True
        self.replica_slots = replica_slots
        self._n_targets = targets
        self._offer = offer
        self._ids = ids or Ids()
        self.prepare_s = 0.0
        """What preparing takes."""
        self.prepared: set[str] = set()
        self.start_error: ModelMeshError | None = None
        """Starting fails with it."""
        self.load_error: ModelMeshError | None = None
        """Loading anything fails with it."""
        self._events: list[RuntimeEvent] = []
        self._news = asyncio.Event()
        self.targets: list[int] = []
        self.loaded: dict[str, tuple[Artefact, tuple[Replica, ...]]] = {}
        self.busy: dict[str, str] = {}
        """Model -> "load" or "unload", while one runs: they may never overlap."""
        self.residue: set[str] = set()
        """Models whose failed or cancelled load has not been followed by an unload."""
        self.bases: dict[str, int] = {}
        self.unattributed_bytes = 0
        self.loads: list[str] = []
        """Every load that was begun, in order."""
        self.looks: list[str] = []
        """Every model whose files were looked at for an estimate, in order."""
        self.violations: list[str] = []
        self.in_use: Callable[[int], int] = lambda replica_id: 0
        """How many requests a replica serves now: unloading it then is a violation."""
        self._peaks: dict[str, int] = {}
        self._stopped = False

    # --- Runtime --------------------------------------------------------------------------------------------

    def offer(self) -> Offer:
        return self._offer

    async def start(self) -> RuntimeInfo:
        if self.start_error is not None:
            raise self.start_error
        for _ in range(self._n_targets):
            self.start_target()
        return RuntimeInfo(
            self.capacity_bytes,
            self.max_loads,
            self._offer.model_types,
            self.load_timeout_s,
            self.serves_versions,
            self.replica_slots,
        )

    async def prepare(self, model_types: Collection[str]) -> None:
        await asyncio.sleep(self.prepare_s)
        self.prepared.update(model_types)

    def estimate_now(self, spec: ModelSpec) -> Estimate | None:
        """Of what was loaded before."""
        try:
            return self._estimate(spec) if spec.id in self.loads else None
        except ModelMeshError:
            return None

    async def estimate(self, spec: ModelSpec) -> Estimate:
        self.looks.append(spec.id)
        await asyncio.sleep(0)
        return self._estimate(spec)

    def _estimate(self, spec: ModelSpec) -> Estimate:
        artefact = self._artefact_of(spec)
        if artefact is None:
            raise LoadFailed(f"Model {spec.id} has no artefact.", code=Code.NOT_FOUND, model=spec.id)
        if artefact.estimate_error is not None:
            raise artefact.estimate_error
        size_bytes = artefact.estimate_bytes or artefact.size_bytes
        base_bytes = artefact.base_bytes if spec.type not in self.bases else 0
        return Estimate(
            size_bytes, round(size_bytes * artefact.peak_factor), base_bytes, 0.0, artefact.content
        )

    async def load(self, spec: ModelSpec, estimate: Estimate) -> Loaded:
        if spec.id in self.busy or spec.id in self.loaded or spec.id in self.residue:
            self.violations.append(f"load of {spec.id} while {self.busy.get(spec.id, 'there')}")
        if sum(kind == "load" for kind in self.busy.values()) >= self.max_loads:
            self.violations.append(f"load of {spec.id} beyond {self.max_loads} slots")
        self.loads.append(spec.id)
        self.busy[spec.id] = "load"
        self.residue.add(spec.id)
        try:
            artefact = self._artefact_of(spec)
            if artefact is None:
                raise LoadFailed(f"Model {spec.id} has no artefact.", code=Code.NOT_FOUND, model=spec.id)
            base_bytes = artefact.base_bytes if spec.type not in self.bases else 0
            self._peaks[spec.id] = round(artefact.size_bytes * artefact.peak_factor) + base_bytes
            await asyncio.sleep(artefact.load_s)
            if error := self.load_error or artefact.error:
                raise error
            if not self.targets:
                raise RuntimeUnavailable("No server is running.", model=spec.id, retry_after_s=0.5)
        finally:
            del self.busy[spec.id]
            self._peaks.pop(spec.id, None)
        self.residue.discard(spec.id)
        if artefact.base_bytes:
            self.bases.setdefault(spec.type, artefact.base_bytes)
        target = self.targets[len(self.loads) % len(self.targets)]
        replicas = (Replica(self._ids.replica(), target, artefact.max_concurrency),)
        self.loaded[spec.id] = (artefact, replicas)
        size_bytes = estimate.size_bytes if artefact.provisional else artefact.size_bytes
        return Loaded(
            size_bytes,
            not artefact.provisional,
            artefact.load_s,
            artefact.content,
            replicas,
            self.capacity_bytes,
            artefact.sizing_s,
        )

    async def unload(self, model: str) -> None:
        if model in self.busy:
            self.violations.append(f"unload of {model} during its {self.busy[model]}")
        self.busy[model] = "unload"
        artefact, replicas = self.loaded.get(model, (Artefact(), ()))
        if any(self.in_use(replica.id) for replica in replicas):
            self.violations.append(f"unload of {model} while it serves requests")
        try:
            await asyncio.sleep(artefact.unload_s)
            if artefact.unload_errors:
                artefact.unload_errors -= 1
                raise RuntimeUnavailable(f"Unloading {model} failed.", model=model)
            self.loaded.pop(model, None)
            self.residue.discard(model)
        finally:
            del self.busy[model]

    def target_reached(self, target_id: int, reached: bool) -> None:
        """Its servers are never replaced."""

    async def next_events(self) -> list[RuntimeEvent]:
        while not self._events:
            self._news.clear()
            await self._news.wait()
        events, self._events = self._events, []
        return events

    def memory(self) -> Sequence[tuple[str, int, int, int]]:
        base_bytes = sum(self.bases.values())
        charged_bytes = self._loaded_bytes
        return [("fake", base_bytes + charged_bytes + self.unattributed_bytes, base_bytes, charged_bytes)]

    async def stop(self, grace_s: float) -> None:
        self._stopped = True

    # --- the script -----------------------------------------------------------------------------------------

    @property
    def capacity_bytes(self) -> int:
        return self.budget_bytes - sum(self.bases.values())

    @property
    def _loaded_bytes(self) -> int:
        return sum(map(self.weight_bytes, self.loaded))

    def weight_bytes(self, model: str) -> int:
        """What the replicas of a loaded model weigh together."""
        artefact, replicas = self.loaded[model]
        return artefact.size_bytes * len(replicas)

    @property
    def used_bytes(self) -> int:
        """What the servers weigh now, with the peaks of running loads."""
        return (
            self._loaded_bytes
            + sum(self._peaks.values())
            + sum(self.bases.values())
            + self.unattributed_bytes
        )

    def emit(self, *events: RuntimeEvent) -> None:
        self._events.extend(events)
        self._news.set()

    def start_target(self) -> int:
        """One more server."""
        target = self._ids.target()
        self.targets.append(target)
        self.emit(TargetsChanged((Target(target, self._address.format(target)),), ()))
        return target

    def crash_target(self, target: int) -> list[str]:
        """A server dies with all its replicas, and another takes its place. Returns the models lost."""
        self.targets.remove(target)
        lost: list[str] = []
        for model, (artefact, replicas) in list(self.loaded.items()):
            left = tuple(replica for replica in replicas if replica.target_id != target)
            if not left:
                lost.append(model)
                del self.loaded[model]
                self.emit(CopyLost(model, f"server {target} died"))
            elif len(left) < len(replicas):
                self._place(model, artefact, left)
        self.emit(TargetsChanged((), (target,)))
        self.start_target()
        return lost

    def forget(self, model: str) -> bool:
        """Lose a model silently. False when it is not loaded."""
        return self.loaded.pop(model, None) is not None

    def measure(self, model: str) -> None:
        """Tell the size of a model loaded provisionally."""
        if model in self.loaded:
            self.emit(SizeChanged(model, self.weight_bytes(model)))

    def move(self, model: str) -> None:
        """A model's replica moves to another server, as when a worker is recycled."""
        if model in self.loaded and self.targets:
            artefact, old = self.loaded[model]
            others = [target for target in self.targets if target != old[0].target_id] or self.targets
            self._place(model, artefact, (Replica(self._ids.replica(), others[0], artefact.max_concurrency),))

    def spread(self, model: str) -> None:
        """A hot model gets a replica in one more server, where it fits, paid for beforehand; else it goes back to one."""
        artefact, replicas = self.loaded[model]
        having = {replica.target_id for replica in replicas}
        others = [target for target in self.targets if target not in having]
        if not others:
            self._place(model, artefact, replicas[:1])
            return
        self.emit(ReplicasChanged(model, replicas, self.weight_bytes(model) + artefact.size_bytes))
        asyncio.get_running_loop().call_later(0.01, self._spread_to, model, others[0])

    def _spread_to(self, model: str, target: int) -> None:
        if model not in self.loaded or model in self.busy:
            return
        artefact, replicas = self.loaded[model]
        if target in self.targets and self.used_bytes + artefact.size_bytes <= self.budget_bytes:
            replicas = (*replicas, Replica(self._ids.replica(), target, artefact.max_concurrency))
        self._place(model, artefact, replicas)

    def _place(self, model: str, artefact: Artefact, replicas: tuple[Replica, ...]) -> None:
        self.loaded[model] = (artefact, replicas)
        self.emit(ReplicasChanged(model, replicas, self.weight_bytes(model)))

    def resize(self, budget_bytes: int, unattributed_bytes: int = 0) -> None:
        """The budget or what belongs to nobody changes."""
        self.budget_bytes, self.unattributed_bytes = budget_bytes, unattributed_bytes
        self.emit(CapacityChanged(self.capacity_bytes, unattributed_bytes, "scripted"))
