"""Several instances on fakes that share a store, artefacts and a network: what `testing.stage` is for one.

async def scene() -> None:
    async with Theatre(3) as theatre:
        await theatre.register("iris")
        assert (await theatre["b"].ask("iris").answer).code is Code.OK

testing.loop.run(scene())
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from string import ascii_lowercase
from typing import Any, Self

from modelmesh.mesh.control import Registration
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State
from modelmesh.peers.protocol import Member
from modelmesh.registry.keep import KeepChange
from modelmesh.store.memory import MemoryStore
from modelmesh.testing.line import Line
from modelmesh.testing.network import Network
from modelmesh.testing.runtime import FAKE, Artefact
from modelmesh.testing.stage import Stage


class Theatre:
    """Instances a, b, c, … Enter it within a running loop. `members` may say more of an instance (zone, labels)."""

    def __init__(
        self,
        n: int,
        *,
        seed: int = 1,
        budget_bytes: int = 100_000,
        max_loads: int = 2,
        load_timeout_s: float = 10.0,
        tuning: Tuning | None = None,
        members: Mapping[str, Mapping[str, Any]] | None = None,
        **stage: Any,
    ) -> None:
        self._rng = random.Random(seed)
        self.network = Network(self._rng)
        self.store = MemoryStore()
        self.artefacts: dict[str, Artefact] = {}
        self.ids = list(ascii_lowercase[:n])
        self.lines: dict[str, Line] = {}
        """To the store, of the instances that live."""
        self._members = members or {}
        self._epochs = count(1)
        self._stage_options = dict(
            budget_bytes=budget_bytes, max_loads=max_loads, load_timeout_s=load_timeout_s, tuning=tuning, **stage
        )  # fmt: skip
        self.stages: dict[str, Stage] = {}
        """The instances that live."""

    def __getitem__(self, id: str) -> Stage:
        return self.stages[id]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages.values())

    async def __aenter__(self) -> Self:
        for id in self.ids:
            await self.begin(id)
        await self.settled()
        return self

    async def __aexit__(self, *error: object) -> None:
        for id in list(self.stages):
            await self.end(id)

    async def settled(self) -> None:
        """Each has heard how all others are doing."""
        await asyncio.sleep(1.5)

    async def begin(self, id: str, *, prepare_s: float = 0.0, **fields: Any) -> Stage:
        """Start an instance, in a new life if it lived before. `prepare_s`: what preparing its runtimes takes; `fields` of its
        member record win over `members`. Raises StoreUnavailable."""
        epoch = next(self._epochs)
        capacity_bytes = self._stage_options["budget_bytes"]
        assert isinstance(capacity_bytes, int)
        member = Member(id, epoch, f"{id}:{epoch}", capacity_bytes=capacity_bytes, started_wall_ms=epoch)
        member = replace(member, **{**self._members.get(id, {}), **fields})
        offers = (FAKE._replace(labels=member.labels, model_types=member.model_types),)
        line = Line(self.store, random.Random(self._rng.randrange(2**32)))
        stage = Stage(
            seed=self._rng.randrange(2**32), network=self.network, member=member, store=self.store, line=line,
            artefacts=self.artefacts, offers=offers, **self._stage_options,
        )  # fmt: skip
        for runtime in stage.runtimes:
            runtime.prepare_s = prepare_s
        await stage.start()
        self.stages[id], self.lines[id] = stage, line
        return stage

    async def end(self, id: str, grace_s: float = 5.0) -> None:
        """Stop an instance in good order."""
        await self.stages[id].stop(grace_s)
        del self.stages[id]

    async def crash(self, id: str) -> None:
        """An instance dies as by kill -9, with its runtime. Nothing happens to one that has ended meanwhile."""
        stage = self.stages.pop(id, None)
        if stage is None:
            return
        self.network.crash(id)
        await stage.crash()

    # --- what keeps instances from each other and from the store ----------------------------------------------

    def cut_store(self, id: str) -> None:
        """An instance is cut off from the store, until `mend`."""
        self.lines[id].cut()
        self.network.members.cut(id)

    def freeze(self, id: str) -> None:
        """An instance stops as by SIGSTOP, until `mend`."""
        self.network.freeze(id)
        self.cut_store(id)

    def mend(self) -> None:
        """Everybody reaches everybody, and the store."""
        for id in self.stages:
            self.lines[id].mend()
            self.network.members.mend(id)
        self.network.mend()

    async def register(
        self, model: str, artefact: Artefact | None = None, type: str = "fake", **keep: Any
    ) -> Artefact:
        """Register a model by the first instance, and wait until all know it. `keep`: the fields of a `KeepChange`."""
        path = f"{model}/{len(self.artefacts)}"
        self.artefacts[path] = artefact or Artefact()
        await next(iter(self)).mesh.register(Registration(model, type, path, keep=KeepChange(**keep)))
        for stage in self:
            await stage.registrar.wait_current()
        return self.artefacts[path]

    def holders(self, model: str) -> list[str]:
        """Where it is loaded."""
        return [
            id
            for id, stage in self.stages.items()
            if (copy := stage.mesh.copy(model)) is not None and copy.state is State.LOADED
        ]

    def loads(self, model: str) -> int:
        """How often it was loaded, in all instances that live."""
        return sum(runtime.loads.count(model) for stage in self for runtime in stage.runtimes)

    async def until(self, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until something holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - anything may make it hold
                await asyncio.sleep(0.001)

    def check(self) -> None:
        """Every invariant of every instance; and nothing the fakes object to."""
        for stage in self:
            stage.mesh.check()
            assert not stage.dataplane.violations, stage.dataplane.violations
            for runtime in stage.runtimes:
                assert not runtime.violations, runtime.violations
