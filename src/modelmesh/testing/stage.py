"""One instance on fakes, ready to be asked: the mesh and its registry are real, the runtime and the data plane are not.

async def scene() -> None:
    async with Stage(budget_bytes=3000) as stage:
        await stage.register("iris", Artefact(size_bytes=1000))
        assert (await stage.ask("iris").answer).code is Code.OK

testing.loop.run(scene())
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Self

from modelmesh.clock import LoopClock
from modelmesh.dataplane.protocol import Name, NameKind
from modelmesh.errors import Code
from modelmesh.journal import Did, Entry, Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.mesh import Mesh
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.tuning import Tuning
from modelmesh.peers.protocol import Member
from modelmesh.policy.runtimes import Constraint, Offer
from modelmesh.registry.keep import KeepChange
from modelmesh.registry.mirror import Mirror
from modelmesh.runtime.ids import Ids
from modelmesh.store.memory import MemoryStore
from modelmesh.testing.dataplane import FakeDataPlane
from modelmesh.testing.line import Line
from modelmesh.testing.network import Network
from modelmesh.testing.requests import Request
from modelmesh.testing.runtime import FAKE, Artefact, FakeRuntime

WALL_START_S: Final = 1_700_000_000.0


class Stage:
    """Enter it within a running loop, virtual or real. `artefacts` are by path; `register` makes the path."""

    def __init__(
        self,
        *,
        budget_bytes: int = 100_000,
        max_loads: int = 2,
        targets: int = 2,
        serial: bool = False,
        load_timeout_s: float = 10.0,
        tuning: Tuning | None = None,
        seed: int = 1,
        offers: Sequence[Offer] = (FAKE,),
        constraints: Mapping[str, Constraint] | None = None,
        sink: Callable[[Entry], None] | None = None,
        network: Network | None = None,
        member: Member | None = None,
        store: MemoryStore | None = None,
        line: Line | None = None,
        artefacts: dict[str, Artefact] | None = None,
        fill: bool = False,
    ) -> None:
        """`serial`: model servers execute one request of a replica at a time, and report what it took. `fill`: see `Mesh`. One of
        several instances: with the network, its member record, the store and artefacts they share, and its line to the store."""
        self.artefacts: dict[str, Artefact] = {} if artefacts is None else artefacts
        self.clock = LoopClock(WALL_START_S)
        self.journal = Journal(self.clock, sink=sink)
        self.store = store or MemoryStore()
        self.mirror = Mirror()
        self.line = line
        self.registrar = Registrar(line or self.store, self.mirror, self.clock, self.journal)
        ids = Ids()
        self.runtimes = [
            FakeRuntime(
                lambda spec: self.artefacts.get(spec.path),
                budget_bytes=budget_bytes,
                max_loads=max_loads,
                targets=targets,
                load_timeout_s=load_timeout_s,
                offer=offer,
                ids=ids,
                replica_slots=int(serial),
            )
            for offer in offers
        ]
        """One per offer, alike, each with a budget of its own."""
        self.runtime = self.runtimes[0]
        self.dataplane = FakeDataPlane(self._holds)
        self.dataplane.serial = serial
        self.dataplane.answers = self._answers
        self._asked: Counter[str] = Counter()
        for runtime in self.runtimes:
            runtime.in_use = self.dataplane.in_flight
        self.peers = None if network is None or member is None else network.join(member, self.dataplane)
        self.mesh = Mesh(
            self.dataplane,
            self.runtimes,
            self.registrar,
            self.clock,
            self.journal,
            random.Random(seed),
            tuning,
            constraints=constraints,
            id="local" if member is None else member.id,
            peers=self.peers,
            fill=fill,
        )
        self.dataplane.wake = lambda: self.mesh.handle_events(self.dataplane.take_events())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Start all parts."""
        await (self.line or self.store).open()
        await self.registrar.start()
        await self.mesh.start()
        await asyncio.sleep(0)

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stop all parts, the face first."""
        await self.mesh.stop(grace_s)
        self.dataplane.stop()
        await self.registrar.stop()

    async def crash(self) -> None:
        """All parts end as by kill -9: nothing is finished, nothing said."""
        for request in list(self.dataplane.requests):
            request.cancel()
        self.dataplane.wake = None
        await self.mesh.kill()
        await self.registrar.kill()

    def _answers(self, model: str) -> Code:
        """As faulty as its artefact is, in even spread."""
        artefact = next(runtime.loaded[model][0] for runtime in self.runtimes if model in runtime.loaded)
        before, self._asked[model] = self._asked[model], self._asked[model] + 1
        failed = int(self._asked[model] * artefact.faulty) > int(before * artefact.faulty)
        return Code.INTERNAL if failed else Code.OK

    def _holds(self, model: str, replica_id: int) -> bool:
        loaded = [runtime.loaded[model] for runtime in self.runtimes if model in runtime.loaded]
        return any(replica.id == replica_id for _, replicas in loaded for replica in replicas)

    async def register(
        self, model: str, artefact: Artefact | None = None, type: str = "fake", **keep: Any
    ) -> Artefact:
        """Register a model made of `artefact`, under a path of its own. `keep`: the fields of a `KeepChange`."""
        path = f"{model}/{len(self.artefacts)}"
        self.artefacts[path] = artefact or Artefact()
        await self.mesh.register(Registration(model, type, path, keep=KeepChange(**keep)))
        return self.artefacts[path]

    def ask(
        self,
        name: str,
        timeout_s: float = 10.0,
        execution_s: float = 0.001,
        *,
        kind: NameKind = NameKind.VMODEL_FIRST,
        version: str = "",
    ) -> Request:
        """A client's call."""
        return self.dataplane.request(Name(kind, name, version), timeout_s, execution_s)

    async def until(self, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until something holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - anything may make it hold
                await asyncio.sleep(0.0005)

    def told(self, did: Did, model: str = "") -> list[Entry]:
        """The journal's entries of one kind, about one model or all."""
        return [entry for entry in self.journal.since(0) if entry.did is did and model in ("", entry.model)]


async def raised(call: Awaitable[object]) -> BaseException | None:
    """What an awaitable raises; None when it returns."""
    try:
        await call
    except Exception as error:
        return error
    return None
