"""The models of one runtime, loaded and unloaded as a mesh says: one call at a time for each, never beyond what fits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

from modelmesh.adapter.requests import Requests
from modelmesh.errors import LoadTimeout, ModelNotFound, NoCapacity
from modelmesh.mesh.cache.ledger import Ledger
from modelmesh.mesh.control import Admit, Registration
from modelmesh.runtime.protocol import (
    CapacityChanged,
    CopyLost,
    Estimate,
    ModelSpec,
    Noted,
    ReplicasChanged,
    Runtime,
    RuntimeEvent,
    RuntimeInfo,
    SizeChanged,
    TargetsChanged,
)
from modelmesh.settings.sizes import format_size

SIZE_S: Final = 10.0
"""How long a size is waited for that is not measured yet; the predecessor waits 30 s."""


@dataclass(slots=True, eq=False)
class Resident:
    """A loaded model."""

    spec: ModelSpec
    size_bytes: int
    measured: asyncio.Event


class Models:
    """`admit` checks where the files of a model are. `say` is told what a person may want to know."""

    def __init__(
        self,
        runtime: Runtime,
        info: RuntimeInfo,
        requests: Requests,
        admit: Admit,
        set_targets: Callable[[TargetsChanged], None],
        say: Callable[[str], None],
    ) -> None:
        self._runtime = runtime
        self._info = info
        self._requests = requests
        self._admit = admit
        self._set_targets = set_targets
        self._say = say
        self._ledger = Ledger(info.capacity_bytes)
        self._residents: dict[str, Resident] = {}
        self._charged: set[str] = set()
        self._slots = asyncio.Semaphore(info.max_loads)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def capacity_bytes(self) -> int:
        """What models may use."""
        return max(self._ledger.capacity_bytes - self._ledger.unattributed_bytes, 0)

    async def predict(self, spec: ModelSpec) -> Estimate:
        """What a load would cost. Raises what loading would raise before it begins."""
        return await self._runtime.estimate(await self._admitted(spec))

    async def load(self, spec: ModelSpec) -> Resident:
        """Load it, or find it loaded. Raises NoCapacity when it does not fit beside the others, and as `Runtime.load`."""
        spec = await self._admitted(spec)
        async with self._lock(spec.id), self._slots:
            resident = self._residents.get(spec.id)
            if resident is not None and resident.spec == spec:
                return resident
            await self._unload(spec.id)
            return await self._load(spec)

    async def _load(self, spec: ModelSpec) -> Resident:
        model, estimate = spec.id, await self._runtime.estimate(spec)
        needed_bytes = estimate.peak_bytes + estimate.base_bytes
        if not self._ledger.reserve(model, needed_bytes):
            free = format_size(max(self._ledger.free_bytes, 0))
            raise NoCapacity(
                f"Model {model} needs {format_size(needed_bytes)} to load, and {free} are free.", model=model
            )
        self._charged.add(model)  # until the unload, which also follows a load that failed
        try:
            async with asyncio.timeout(self._info.load_timeout_s):
                loaded = await self._runtime.load(spec, estimate)
        except TimeoutError as error:
            raise LoadTimeout(
                f"Loading model {model} was not done within {self._info.load_timeout_s:g} s.", model=model
            ) from error
        self._ledger.settle(model, loaded.size_bytes, loaded.capacity_bytes)
        resident = self._residents[model] = Resident(spec, loaded.size_bytes, asyncio.Event())
        if loaded.measured:
            resident.measured.set()
        self._requests.open(model, loaded.replicas)
        return resident

    async def unload(self, model: str) -> None:
        """Returns when its memory is given back. Unloading what is not loaded is no error."""
        async with self._lock(model):
            await self._unload(model)

    async def _unload(self, model: str) -> None:
        self._residents.pop(model, None)
        await self._requests.close(model)
        await self._runtime.unload(model)
        if model in self._charged:
            self._charged.discard(model)
            self._ledger.begin_unload(model)
            self._ledger.release(model)

    async def size(self, model: str) -> int:
        """What a loaded model weighs, once it is measured. Raises ModelNotFound."""
        resident = self._residents.get(model)
        if resident is None:
            raise ModelNotFound(f"model not found: {model}", model=model)
        waiting = asyncio.ensure_future(resident.measured.wait())
        await asyncio.wait({waiting}, timeout=SIZE_S)
        waiting.cancel()
        return resident.size_bytes

    async def purge(self) -> None:
        """Unload everything."""
        await asyncio.gather(*(self.unload(model) for model in list(self._charged)))

    def lost(self, model: str) -> None:
        """It is gone from the runtime."""
        if self._residents.pop(model, None) is not None:
            self._charged.discard(model)
            self._ledger.release(model)

    async def follow(self) -> None:
        """Act on what the runtime tells, until cancelled."""
        while True:
            for event in await self._runtime.next_events():
                self._handle(event)

    def _handle(self, event: RuntimeEvent) -> None:
        match event:
            case TargetsChanged():
                self._set_targets(event)
            case CapacityChanged():
                self._ledger.adopt(event.capacity_bytes, event.unattributed_bytes)
            case CopyLost():
                self._requests.cut(event.model)
                self.lost(event.model)
                self._say(f"Model {event.model} is lost: {event.reason}")
            case SizeChanged():
                self._resize(event.model, event.size_bytes)
            case ReplicasChanged() if event.model in self._residents:
                self._requests.open(event.model, event.replicas)
                self._resize(event.model, event.size_bytes)
            case Noted():
                self._say(event.reason)
            case _:
                pass

    def _resize(self, model: str, size_bytes: int) -> None:
        resident = self._residents.get(model)
        if resident is not None:
            resident.size_bytes = size_bytes
            resident.measured.set()
            self._ledger.resize(model, size_bytes)

    def _lock(self, model: str) -> asyncio.Lock:
        return self._locks.setdefault(model, asyncio.Lock())

    async def _admitted(self, spec: ModelSpec) -> ModelSpec:
        type = type_in(spec)
        admitted = await asyncio.to_thread(self._admit, Registration(spec.id, type, spec.path, spec.key))
        return ModelSpec(spec.id, type, admitted.path, spec.key)


def type_in(spec: ModelSpec) -> str:
    """The format of a model. KServe names it in the key (`model_type`, a text or an object with a name), where it names the
    runtime in the type; else it is the type."""
    try:
        key: Any = json.loads(spec.key or "{}")
    except ValueError:
        return spec.type
    told = key.get("model_type") if isinstance(key, dict) else None
    name = told.get("name") if isinstance(told, dict) else told
    return name if isinstance(name, str) and name else spec.type
