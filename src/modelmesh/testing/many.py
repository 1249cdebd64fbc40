"""Several instances under random traffic and random trouble, in virtual time, with every invariant checked after each step.

As `testing.simulator` is for one. A seed makes the whole story: how many instances, who is asked for what, who crashes, hangs,
comes back, is replaced, is cut off from whom or from the store, what loads slowly or fails. After it all must converge
(`testing.convergence`). Most worlds are small, because a small one shows most mistakes in the least time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from modelmesh.dataplane.protocol import Name
from modelmesh.mesh.control import Registration
from modelmesh.mesh.tuning import Tuning
from modelmesh.registry.keep import KeepChange
from modelmesh.registry.records import Canary
from modelmesh.testing.clients import Clients
from modelmesh.testing.convergence import Convergence
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage
from modelmesh.testing.storage import bad_artefact
from modelmesh.testing.theatre import Theatre
from modelmesh.testing.traffic import TIMEOUTS_S, VMODELS, Traffic
from modelmesh.testing.trouble import Trouble
from modelmesh.testing.watching import Watching

SIZES: Final = ((3, 40), (4, 25), (5, 14), (6, 10), (8, 6), (12, 3), (20, 2))
"""Numbers of instances, with their weights."""
SMALL_BYTES: Final = 40
"""A dozen of these leave room for the largest model beside them."""
LOAD_TIMEOUT_S: Final = 2.0
SLOW_S: Final = 3.0
"""What a load takes that is not done in time."""
CANARIES: Final = (None, None, Canary(0.3, 500, 0), Canary(0.1, 3_000, 10))
FLOOD: Final = 60
FLOOD_EVERY_S: Final = 0.02
PAUSES_S: Final = (0.0, 0.001, 0.01, 0.1, 0.8)
LONG_S: Final = (2.0, 12.0)
"""Pauses in which leases run out and failures expire."""
CALLS_S: Final = 300.0
"""No call takes longer, whatever happens."""


class Story:
    """`await play()` under `testing.loop.run(…, after_step=story.check)`. Raises InvariantBroken."""

    def __init__(self, seed: int, actions: int = 40) -> None:
        self._rng = random.Random(seed)
        self._actions = actions
        self.seen: Counter[str] = Counter()
        """What happened, for tests that want to know that something did."""
        self._clients = Clients(self._rng)
        self._traffic = Traffic(self._clients, self._rng, self.seen)
        self._theatre: Theatre
        self._trouble: Trouble
        self._watching: Watching | None = None
        self._models: list[str] = []
        self._serial = 0

    # --- the story ------------------------------------------------------------------------------------------

    async def play(self) -> Counter[str]:
        """Trouble, then peace."""
        rng = self._rng
        (n,) = rng.choices([n for n, _ in SIZES], [weight for _, weight in SIZES])
        self._models = [f"m{index}" for index in range(max(12, 2 * n))]
        tick_s = rng.choice((0.25, 1.0)) if n <= 4 else 1.0
        self._theatre = Theatre(
            n, seed=rng.randrange(2**32), budget_bytes=rng.choice((3_500, 6_000, 10_000)),
            max_loads=rng.choice((1, 2, 4)), load_timeout_s=LOAD_TIMEOUT_S, fill=rng.random() < 0.3,
            tuning=Tuning(
                tick_s=tick_s, look_s=tick_s, spare_s=5.0, retire_timeout_s=rng.choice((0.05, 1.0)), unload_retry_s=0.1
            ),
        )  # fmt: skip
        self._theatre.network.delay_s = rng.choice(((0.0002, 0.002), (0.0002, 0.002), (0.005, 0.05)))
        async with self._theatre:
            self._trouble = Trouble(self._theatre, self._clients, rng, self.seen)
            self._watching = Watching(self._theatre, self._clients)
            for _ in range(rng.randint(3, 8)):
                await self._register(rng.choice(self._models))
            for vmodel in VMODELS:
                await self._set(vmodel, self._clients.known_model(), sync=False)
            await self._live()
            await self._peace()
            self._watching = None
        return self.seen

    async def _live(self) -> None:
        rng = self._rng
        scenes = (*self._clients_scenes(), *self._trouble.scenes())
        plays, weights = [play for _, play in scenes], [weight for weight, _ in scenes]
        for _ in range(self._actions):
            rng.choices(plays, weights)[0]()
            luck = rng.random()
            if luck < 0.7:
                await asyncio.sleep(rng.choice(PAUSES_S))
            elif luck < 0.73:
                await asyncio.sleep(rng.choice(LONG_S))

    def _clients_scenes(self) -> tuple[tuple[int, Callable[[], None]], ...]:
        return (
            (40, self._ask), (10, self._ask_everywhere), (5, self._register_some), (3, self._unregister),
            (2, self._replace), (4, self._keep), (5, self._set_vmodel), (2, self._delete_vmodel), (4, self._load),
            (4, self._unload), (3, self._flood),
        )  # fmt: skip

    async def _peace(self) -> None:
        self._trouble.end()
        await self._calls_end()
        await self._trouble.bring_back()
        await self._calls_end()
        for artefact in self._theatre.artefacts.values():
            artefact.load_s = min(artefact.load_s, LOAD_TIMEOUT_S / 4)
        if waiting := list(self._traffic.waiting.values()):
            await asyncio.wait([request.answer for request in waiting], timeout=60.0)
        left = len(self._traffic.waiting)
        self._clients.expect(not left, f"{left} requests were never answered")
        await Convergence(self._theatre, self._clients, self._traffic, self.seen).reached()
        for what in ("scaled_up", "scaled_down"):
            counted = (stage.mesh.measures.counters[f"modelmesh_{what}"] for stage in self._theatre)
            self.seen[what.replace("_", " ")] += sum(counted)
        self.seen["loads"] += sum(stage.mesh.instance().loads_total for stage in self._theatre)
        self.seen["evictions"] += sum(stage.mesh.instance().evictions_total for stage in self._theatre)
        self._clients.complain()

    async def _calls_end(self) -> None:
        if self._clients.calls:
            _, late = await asyncio.wait(self._clients.calls, timeout=CALLS_S)
            self._clients.expect(not late, f"{len(late)} calls never ended")

    def check(self) -> None:
        """After every step of the loop."""
        if self._watching is not None:
            self._watching.step()

    # --- what clients do ------------------------------------------------------------------------------------

    def _any(self) -> Stage:
        return self._theatre[self._rng.choice(self._trouble.awake())]

    def _ask(self) -> None:
        self._traffic.ask(self._any(), self._traffic.name(), self._rng.choice(TIMEOUTS_S))

    def _ask_everywhere(self) -> None:
        name = self._traffic.name()
        for id in self._trouble.awake():
            self._traffic.ask(self._theatre[id], name, self._rng.choice(TIMEOUTS_S[1:]))

    def _flood(self) -> None:
        """A model is suddenly in demand."""
        loop, name = asyncio.get_running_loop(), self._traffic.name()
        for index in range(FLOOD):
            loop.call_later(FLOOD_EVERY_S * index, self._flood_one, name)

    def _flood_one(self, name: Name) -> None:
        if not self._trouble.over and self._trouble.awake():
            self._traffic.ask(self._any(), name, TIMEOUTS_S[2])

    def _register_some(self) -> None:
        self._clients.begin(self._register(self._rng.choice(self._models)))

    async def _register(self, model: str) -> None:
        if not self._clients.is_free(model):
            return
        path = self._artefact()
        registration = Registration(model, "fake", path, keep=self._some_keep(path))
        await self._clients.acknowledge(model, self._any().mesh.register(registration), path)

    def _artefact(self) -> str:
        rng = self._rng
        artefact = Artefact(
            size_bytes=rng.choice((SMALL_BYTES, 500, 1_000, 1_900, 3_000)),
            load_s=rng.choice((0.001, 0.01, 0.1, 0.5, SLOW_S)),
            unload_s=rng.choice((0.0, 0.001, 0.05)),
            max_concurrency=rng.choice((0, 0, 1, 2)),
        )
        if rng.random() < 0.08:
            artefact.error = bad_artefact()
        self._serial += 1
        path = f"p{self._serial}"
        self._theatre.artefacts[path] = artefact
        return path

    def _some_keep(self, path: str) -> KeepChange:
        """How a model is kept. Only small ones are held, so that there is always room for all the others in turn: those have
        terms of their own, and so never take over what a name that moves to them had."""
        priority = self._rng.choice((0.5, 2.0, 4.0))
        if self._theatre.artefacts[path].size_bytes > SMALL_BYTES:
            return KeepChange(priority=priority)
        return KeepChange(min_copies=self._rng.randrange(4), pin=self._rng.random() < 0.3, priority=priority)

    def _keep(self) -> None:
        if (model := self._clients.known_model()) is not None:
            change = self._some_keep(self._clients.registered[model])
            self._clients.begin(self._clients.quiet(self._any().mesh.keep(model, change)))

    def _unregister(self) -> None:
        if (model := self._clients.known_model()) is not None:
            self._clients.begin(self._clients.acknowledge(model, self._any().mesh.unregister(model), None))

    def _replace(self) -> None:
        """Unregister, and at once register another artefact under the same id, perhaps elsewhere."""
        if (model := self._clients.known_model()) is not None:
            self._clients.begin(self._replaced(model))

    async def _replaced(self, model: str) -> None:
        await self._clients.acknowledge(model, self._any().mesh.unregister(model), None)
        await self._register(model)

    def _set_vmodel(self) -> None:
        vmodel, sync = self._rng.choice(VMODELS), self._rng.random() < 0.3
        canary = self._rng.choice(CANARIES)
        self._clients.begin(self._set(vmodel, self._clients.known_model(), sync=sync, canary=canary))

    async def _set(
        self, vmodel: str, target: str | None, *, sync: bool, canary: Canary | None = None
    ) -> None:
        if target is not None:
            self._traffic.targets[vmodel].add(target)
            call = self._any().mesh.set_vmodel(vmodel, target, sync=sync, canary=canary)
            await self._clients.quiet(call)

    def _delete_vmodel(self) -> None:
        vmodel = self._rng.choice(VMODELS)
        self._clients.begin(self._clients.quiet(self._any().mesh.delete_vmodel(vmodel)))

    def _load(self) -> None:
        if (model := self._clients.known_model()) is not None:
            self._clients.begin(self._clients.quiet(self._any().mesh.load(model, timeout_s=3.0)))

    def _unload(self) -> None:
        if (model := self._clients.known_model()) is not None:
            self._clients.begin(self._clients.quiet(self._any().mesh.unload(model, timeout_s=3.0)))


def play(seed: int, actions: int = 40) -> Counter[str]:
    """Play one seed. Raises what broke, with the seed in its notes."""
    story = Story(seed, actions)
    try:
        return run(story.play(), after_step=story.check)
    except BaseException as error:
        error.add_note(f"Seed {seed}: MODELMESH_MANY_SEED={seed} runs it alone.")
        raise
