"""Several instances under random traffic and random trouble, in virtual time, with every invariant checked after each step.

As `testing.simulator` is for one. A seed makes the whole story: how many instances, who is asked for what, who crashes, hangs,
comes back, is cut off from whom, when the store is away. After it everything that can be served must be, from everywhere,
and what each instance believes of the others must be the truth.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Final

from modelmesh.dataplane.protocol import Name, NameKind
from modelmesh.errors import Code, StoreUnavailable
from modelmesh.mesh.control import Registration
from modelmesh.mesh.targets import RESIDENCE_S, VMODEL_ACTIVE, VMODEL_TARGET
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State
from modelmesh.registry.keep import KeepChange
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import Canary
from modelmesh.testing.clients import Clients
from modelmesh.testing.dataplane import Answer, Request
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage
from modelmesh.testing.storage import bad_artefact, mend_storage, turn_storage
from modelmesh.testing.theatre import Theatre

VMODELS: Final = ("v0", "v1")
TIMEOUTS_S: Final = (0.2, 1.0, 5.0, 15.0)
SMALL_BYTES: Final = 40
"""A dozen of these leave room for the largest model beside them."""
PEACE_S: Final = 12.0
"""Leases of the dead run out, failures expire."""
VMODEL_S: Final = 400.0
"""A target that failed several times is tried again within this."""


class Story:
    """`await play()` under `testing.loop.run(…, after_step=story.check)`. Raises InvariantBroken."""

    def __init__(self, seed: int, actions: int = 40) -> None:
        self._rng = random.Random(seed)
        self._actions = actions
        self._clients = Clients(self._rng)
        self._theatre: Theatre | None = None
        self._requests: dict[int, Request] = {}
        self._down: set[str] = set()
        self._serial = self._step = 0
        self._at_peace = False
        self.seen: Counter[str] = Counter()
        """What happened, for tests that want to know that something did."""

    # --- the story ------------------------------------------------------------------------------------------

    async def play(self) -> Counter[str]:
        """Trouble, then peace."""
        rng = self._rng
        theatre = Theatre(
            rng.randint(3, 6), seed=rng.randrange(2**32), budget_bytes=rng.choice((3_500, 6_000, 10_000)),
            max_loads=rng.choice((1, 2)), load_timeout_s=2.0,
            tuning=Tuning(tick_s=0.25, look_s=0.25, spare_s=5.0, retire_timeout_s=rng.choice((0.05, 1.0)), unload_retry_s=0.1),
        )  # fmt: skip
        async with theatre:
            self._theatre = theatre
            for _ in range(rng.randint(3, 8)):
                await self._register(f"m{rng.randrange(12)}")
            for vmodel in VMODELS:
                if (target := self._clients.known_model()) is not None:
                    await self._any().mesh.set_vmodel(vmodel, target)
            scenes = (
                (40, self._ask), (10, self._ask_everywhere), (6, self._crash), (4, self._freeze), (5, self._cut),
                (5, self._mend), (6, self._return), (3, self._leave), (3, self._outage), (5, self._register_some),
                (3, self._unregister), (4, self._keep), (5, self._set_vmodel), (4, self._load), (4, self._unload),
                (4, self._break), (4, self._forget), (3, self._lose_server), (2, self._delete_vmodel), (3, self._flood),
            )  # fmt: skip
            for _ in range(self._actions):
                rng.choices([scene for _, scene in scenes], [weight for weight, _ in scenes])[0]()
                if rng.random() < 0.7:
                    await asyncio.sleep(rng.choice((0.0, 0.001, 0.01, 0.1, 0.8)))
            await self._peace()
            self._theatre = None
        return self.seen

    @property
    def _all(self) -> Theatre:
        assert self._theatre is not None
        return self._theatre

    def _awake(self) -> list[str]:
        return sorted(self._all.stages.keys() - self._all.network.frozen)

    def _any(self) -> Stage:
        return self._all[self._rng.choice(self._awake())]

    def _name(self) -> Name:
        if self._rng.random() < 0.2:
            return Name(NameKind.VMODEL, self._rng.choice(VMODELS))
        return Name(NameKind.MODEL, self._clients.known_model() or "m0")

    def _ask(self) -> None:
        self._begin(self._any(), self._name(), self._rng.choice(TIMEOUTS_S))

    def _ask_everywhere(self) -> None:
        name = self._name()
        for id in self._awake():
            self._begin(self._all[id], name, self._rng.choice(TIMEOUTS_S[1:]))

    def _flood(self) -> None:
        """A model is suddenly in demand."""
        loop, name = asyncio.get_running_loop(), self._name()
        for index in range(60):
            loop.call_later(0.02 * index, self._flood_one, name)

    def _flood_one(self, name: Name) -> None:
        if self._theatre is not None and not self._at_peace and self._awake():
            self._begin(self._any(), name, 5.0)

    def _begin(self, stage: Stage, name: Name, timeout_s: float) -> Request:
        request = stage.dataplane.request(name, timeout_s, self._rng.choice((0.001, 0.001, 0.05)))
        self._requests[id(request)] = request
        request.answer.add_done_callback(lambda _: self._answered(request))
        return request

    def _answered(self, request: Request) -> None:
        self._requests.pop(id(request), None)
        if not request.answer.cancelled():
            self.seen[request.answer.result().code.name] += 1

    def _crash(self) -> None:
        ids = self._awake()
        if len(ids) > 2:
            id = self._rng.choice(ids)
            self._down.add(id)
            self.seen["crashes"] += 1
            self._clients.begin(self._all.crash(id))

    def _leave(self) -> None:
        """An instance is stopped in good order."""
        ids = self._awake()
        if len(ids) > 2:
            id = self._rng.choice(ids)
            self._down.add(id)
            self.seen["stops"] += 1
            stage = self._all.stages.pop(id)
            self._clients.begin(stage.stop(2.0))

    def _return(self) -> None:
        down = sorted(self._down - self._all.stages.keys())
        if down:
            id = self._rng.choice(down)
            self._down.discard(id)
            self._clients.begin(self._begin_instance(id))

    async def _begin_instance(self, id: str) -> None:
        try:
            await self._all.begin(id)
        except StoreUnavailable:
            self._down.add(id)

    def _freeze(self) -> None:
        ids = self._awake()
        if len(ids) > 2 and not self._all.network.frozen:
            self.seen["freezes"] += 1
            self._all.network.freeze(self._rng.choice(ids))

    def _cut(self) -> None:
        ids = sorted(self._all.stages)
        if len(ids) > 1:
            self.seen["partitions"] += 1
            self._all.network.cut(*self._rng.sample(ids, 2))

    def _mend(self) -> None:
        self._all.network.mend()

    def _outage(self) -> None:
        self._all.store.outage = "The store is away."
        asyncio.get_running_loop().call_later(self._rng.choice((0.05, 1.0)), self._end_outage)

    def _end_outage(self) -> None:
        if self._theatre is not None:
            self._theatre.store.outage = ""

    def _register_some(self) -> None:
        self._clients.begin(self._register(f"m{self._rng.randrange(12)}"))

    async def _register(self, model: str) -> None:
        if not self._clients.is_free(model):
            return
        path = self._artefact()
        registration = Registration(model, "fake", path, keep=self._some_keep(path))
        await self._clients.acknowledge(model, self._any().mesh.register(registration), path)

    def _some_keep(self, path: str) -> KeepChange:
        """How a model is kept. Only small ones are held, so that there is always room for all the others in turn."""
        priority = self._rng.choice((0.5, 1.0, 4.0))
        if self._all.artefacts[path].size_bytes > SMALL_BYTES:
            return KeepChange(priority=priority)
        return KeepChange(min_copies=self._rng.randrange(4), pin=self._rng.random() < 0.3, priority=priority)

    def _keep(self) -> None:
        if (model := self._clients.known_model()) is not None:
            change = self._some_keep(self._clients.registered[model])
            self._clients.begin(self._clients.quiet(self._any().mesh.keep(model, change)))

    def _artefact(self) -> str:
        rng = self._rng
        artefact = Artefact(
            size_bytes=rng.choice((SMALL_BYTES, 500, 1_000, 1_900, 3_000)),
            load_s=rng.choice((0.001, 0.01, 0.1, 0.5)),
            unload_s=rng.choice((0.0, 0.001, 0.05)),
            max_concurrency=rng.choice((0, 0, 1, 2)),
        )
        if rng.random() < 0.08:
            artefact.error = bad_artefact()
        self._serial += 1
        path = f"p{self._serial}"
        self._all.artefacts[path] = artefact
        return path

    def _unregister(self) -> None:
        if (model := self._clients.known_model()) is not None:
            self._clients.begin(self._clients.acknowledge(model, self._any().mesh.unregister(model), None))

    def _set_vmodel(self) -> None:
        if (target := self._clients.known_model()) is not None:
            vmodel, sync = self._rng.choice(VMODELS), self._rng.random() < 0.3
            canary = self._rng.choice((None, None, Canary(0.3, 500, 0), Canary(0.1, 3_000, 10)))
            call = self._any().mesh.set_vmodel(vmodel, target, sync=sync, canary=canary)
            self._clients.begin(self._clients.quiet(call))

    def _delete_vmodel(self) -> None:
        vmodel = self._rng.choice(VMODELS)
        self._clients.begin(self._clients.quiet(self._any().mesh.delete_vmodel(vmodel)))

    def _load(self) -> None:
        if (model := self._clients.known_model()) is not None:
            self._clients.begin(self._clients.quiet(self._any().mesh.load(model, timeout_s=3.0)))

    def _unload(self) -> None:
        if (model := self._clients.known_model()) is not None:
            self._clients.begin(self._clients.quiet(self._any().mesh.unload(model, timeout_s=3.0)))

    def _break(self) -> None:
        turn_storage(self._all.artefacts, self._rng)

    def _forget(self) -> None:
        """A model server loses a model and says nothing."""
        runtime = self._any().runtime
        if runtime.loaded:
            runtime.forget(self._rng.choice(sorted(runtime.loaded)))

    def _lose_server(self) -> None:
        """A model server dies."""
        stage = self._any()
        target = self._rng.choice(stage.runtime.targets)
        stage.dataplane.lose_target(target)
        stage.runtime.crash_target(target)

    # --- peace ----------------------------------------------------------------------------------------------

    async def _peace(self) -> None:
        self._at_peace = True
        mend_storage(self._all.artefacts)
        self._end_outage()
        self._all.network.mend()
        for _ in range(2):
            if self._clients.calls:
                _, late = await asyncio.wait(self._clients.calls, timeout=300.0)
                self._clients.expect(not late, f"{len(late)} calls never ended")
            for id in sorted(self._down - self._all.stages.keys()):
                self._down.discard(id)
                await self._begin_instance(id)
        if self._requests:
            await asyncio.wait([request.answer for request in self._requests.values()], timeout=60.0)
        self._clients.expect(not self._requests, f"{len(self._requests)} requests were never answered")
        await asyncio.sleep(PEACE_S)
        for model, path in sorted(self._clients.registered.items()):
            if model not in self._clients.doubtful:
                for id in sorted(self._all.stages):
                    await self._served(id, model, self._all.artefacts[path])
        await asyncio.sleep(3.0)
        await self._vmodels_at_rest()
        self._agreed()
        self._kept()
        self.seen["scaled up"] += self._counted("modelmesh_scaled_up")
        self.seen["scaled down"] += self._counted("modelmesh_scaled_down")
        self.seen["loads"] += sum(stage.mesh.instance().loads_total for stage in self._all)
        self.seen["evictions"] += sum(stage.mesh.instance().evictions_total for stage in self._all)
        self._clients.complain()

    async def _served(self, id: str, model: str, artefact: Artefact) -> None:
        answer = Answer(Code.UNKNOWN)
        for _ in range(12):
            request = self._begin(self._all[id], Name(NameKind.MODEL, model), 30.0)
            answer = await request.answer
            if answer.code is Code.OK or artefact.error is not None:
                break
            await asyncio.sleep(max(answer.retry_after_ms, 500) / 1000)
        good = artefact.error is not None or answer.code is Code.OK
        self._clients.expect(good, f"{model} is not served by {id} in peace: {answer}")

    async def _vmodels_at_rest(self) -> None:
        """Every vmodel reached its target, if that can be loaded, and nothing is held for it any more."""
        loop, mirror = asyncio.get_running_loop(), next(iter(self._all)).mirror
        ends_s = loop.time() + VMODEL_S
        while moving := [vmodel for vmodel in sorted(mirror.unsettled) if self._can_move(mirror, vmodel)]:
            await asyncio.sleep(1.0)
            if loop.time() >= ends_s:
                break
        self._clients.expect(not moving, f"{moving} never reached their targets")
        await asyncio.sleep(RESIDENCE_S[1])
        for id, stage in self._all.stages.items():
            records = [stage.mirror.vmodel(vmodel) for vmodel in sorted(stage.mirror.unsettled)]
            under_way = {
                model
                for record in records
                if record is not None and not record.rolled_back
                for model in (record.active, record.target)
            }
            for model in self._clients.registered.keys() - under_way:
                copy = stage.mesh.copy(model)
                held = {VMODEL_TARGET, VMODEL_ACTIVE} & set(copy.holds if copy is not None else ())
                self._clients.expect(not held, f"{id} still holds {model}, as {sorted(held)}")

    def _can_move(self, mirror: Mirror, vmodel: str) -> bool:
        record = mirror.vmodel(vmodel)
        path = None if record is None or record.rolled_back else self._clients.registered.get(record.target)
        return path is not None and self._all.artefacts[path].error is None

    def _counted(self, name: str) -> int:
        return sum(stage.mesh.measures.counters[name] for stage in self._all)

    def _kept(self) -> None:
        """As many copies are loaded as are to be kept, as far as there are instances."""
        for model, path in self._clients.registered.items():
            record = next(iter(self._all)).mirror.model(model)
            if (
                model in self._clients.doubtful
                or record is None
                or self._all.artefacts[path].error is not None
            ):
                continue
            wanted, held = min(record.keep.min_copies, len(self._all.stages)), len(self._all.holders(model))
            self._clients.expect(held >= wanted, f"{wanted} copies of {model} are kept, {held} are there")
            self.seen["kept"] += wanted

    def _agreed(self) -> None:
        """What each believes of the others is so, and every route leads to a copy."""
        for id, stage in self._all.stages.items():
            fleet = stage.mesh.fleet
            assert fleet is not None
            self._clients.expect(
                {peer.id for peer in fleet} == self._all.stages.keys() - {id},
                f"{id} does not know all others",
            )
            for peer in fleet:
                theirs = self._all[peer.id].mesh
                believed = {model for model in peer.copies if peer.holds(model)}
                held = {
                    model
                    for model in self._clients.registered
                    if (copy := theirs.copy(model)) is not None
                    and copy.state is State.LOADED
                    and copy.retirement is None
                }
                self._clients.expect(believed <= held, f"{id} believes {believed - held} of {peer.id}")
                unknown = {model for model in held - believed if model not in peer.denied}
                self._clients.expect(not unknown, f"{id} does not know {unknown} of {peer.id}")
                self._clients.expect(not peer.silent and not peer.lost, f"{id} still suspects {peer.id}")

    # --- checks ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """After every step of the loop, one instance in turn: what is broken stays so until its turn comes."""
        if self._theatre is None or not self._theatre.stages:
            return
        self._step += 1
        stages = self._theatre.stages
        id = list(stages)[self._step % len(stages)]
        stage = stages[id]
        stage.mesh.check()
        problems = stage.runtime.violations + stage.dataplane.violations
        self._clients.note([f"{id}: {problem}" for problem in problems])
        own = set(stage.runtime.targets)
        for model, replicas in stage.dataplane.routes.items():
            if any(replica.target_id in own for replica in replicas):
                copy = stage.mesh.copy(model)
                loaded = copy is not None and copy.state is State.LOADED
                self._clients.expect(loaded, f"{id} has a route to its {model}, which is not loaded")
        now_s = asyncio.get_running_loop().time()
        for request in stage.dataplane.requests:
            self._clients.expect(
                now_s <= request.deadline_s + 1e-6, f"{id}: {request.name} outlived its deadline"
            )
        self._clients.complain()


def play(seed: int, actions: int = 40) -> Counter[str]:
    """Play one seed. Raises what broke, with the seed in its notes."""
    story = Story(seed, actions)
    try:
        return run(story.play(), after_step=story.check)
    except BaseException as error:
        error.add_note(f"Seed {seed}: MODELMESH_MANY_SEED={seed} runs it alone.")
        raise
