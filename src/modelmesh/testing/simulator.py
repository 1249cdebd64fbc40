"""One instance under random traffic and random trouble, in virtual time, with every invariant checked after each step.

A seed makes the whole story: the models, what is wrong with them, who asks for what and when, what breaks. Nothing
else does, so a seed that fails fails again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from modelmesh.dataplane.protocol import Name, NameKind
from modelmesh.errors import (
    Code,
)
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State
from modelmesh.registry.mirror import ChangedIds, Mirror
from modelmesh.testing.clients import Clients
from modelmesh.testing.loop import run
from modelmesh.testing.requests import Answer, Request
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage
from modelmesh.testing.storage import bad_artefact, mend_storage, turn_storage

VMODELS: Final = ("v0", "v1", "v2", "m1", "v0:1")
TIMEOUTS_S: Final = (0.02, 0.2, 1.0, 5.0, 15.0)


@dataclass(slots=True)
class Outcome:
    """What a run saw, for tests that want to know that it did something."""

    answers: dict[str, int] = field(default_factory=dict)
    loads: int = 0
    evictions: int = 0
    crashes: int = 0
    steps: int = 0


@dataclass(eq=False, slots=True)
class _Call:
    """A client's call, with what its name has meant from its beginning on."""

    request: Request
    begun_s: float
    meanings: set[str | None]


class Simulation:
    """`await play()` under `testing.loop.run(…, after_step=simulation.check)`. Raises InvariantBroken."""

    def __init__(self, seed: int, actions: int = 70) -> None:
        self._rng = random.Random(seed)
        self._actions = actions
        self._serial = 0
        self._clients = Clients(self._rng)
        self._calls: dict[int, _Call] = {}
        self._honest = self._rng.random() < 0.5
        """Every estimate is right, so memory may never exceed the budget."""
        self.outcome = Outcome()
        self._playing = False

    # --- the parts ------------------------------------------------------------------------------------------

    async def _build(self) -> None:
        rng = self._rng
        self._budget_bytes = rng.choice((3_500, 5_000, 10_000))
        self._stage = Stage(
            budget_bytes=self._budget_bytes,
            max_loads=rng.choice((1, 2, 4)),
            targets=rng.choice((1, 2, 3)),
            load_timeout_s=2.0,
            tuning=Tuning(
                tick_s=rng.choice((0.25, 1.0)), retire_timeout_s=rng.choice((0.05, 1.0)), unload_retry_s=0.1
            ),
            seed=rng.randrange(2**32),
        )
        await self._stage.start()
        self._artefacts = self._stage.artefacts
        self._clock, self.journal, self._store = self._stage.clock, self._stage.journal, self._stage.store
        self._mirror, self._registrar = self._stage.mirror, self._stage.registrar
        self.runtime, self.dataplane, self.mesh = self._stage.runtime, self._stage.dataplane, self._stage.mesh
        self._registrar.on_change(self._names_changed)
        for _ in range(rng.randint(3, 10)):
            await self._register(f"m{rng.randrange(12)}")
        for vmodel in VMODELS[: rng.randint(1, 3)]:
            await self.mesh.set_vmodel(vmodel, self._clients.known_model() or "m0")
        self._playing = True

    def _artefact(self) -> str:
        """A new artefact's path."""
        rng = self._rng
        size_bytes = rng.choice((100, 500, 1_000, 1_900, 3_000))
        artefact = Artefact(
            size_bytes=size_bytes,
            load_s=rng.choice((0.001, 0.01, 0.1, 0.5)),
            unload_s=rng.choice((0.0, 0.001, 0.05)),
            peak_factor=rng.choice((1.0, 1.0, 1.3)),
            content=rng.choice(("", f"c{self._serial}")),
        )
        kind = rng.random()
        if kind < 0.06:
            artefact.error = bad_artefact()
        elif kind < 0.10:
            artefact.size_bytes = 1_000_000
        elif kind < 0.13:
            artefact.load_s = 5.0
        elif kind < 0.16:
            artefact.unload_errors = 2
        elif kind < 0.20:
            artefact.base_bytes = 150
        elif kind < 0.35 and not self._honest:
            artefact.estimate_bytes = rng.choice((10, size_bytes * 2))
            artefact.provisional = rng.random() < 0.5
        self._serial += 1
        path = f"p{self._serial}"
        self._artefacts[path] = artefact
        return path

    # --- the story ------------------------------------------------------------------------------------------

    async def play(self) -> Outcome:
        """The whole story: trouble, then peace, in which everything that can be served must be."""
        await self._build()
        rng = self._rng
        scenes = (
            (34, self._ask), (6, self._ask_much), (6, self._cancel), (5, self._crash), (3, self._blip), (4, self._forget),
            (4, self._move), (4, self._measure), (4, self._resize), (6, self._register_some), (5, self._unregister),
            (3, self._replace), (6, self._set_vmodel), (2, self._delete_vmodel), (5, self._load), (4, self._unload),
            (4, self._break), (2, self._outage), (8, self._pause),
        )  # fmt: skip
        weights = [weight for weight, _ in scenes]
        for _ in range(self._actions):
            (_, scene) = rng.choices(scenes, weights)[0]
            scene()
            if rng.random() < 0.7:
                await asyncio.sleep(rng.choice((0.0, 0.0005, 0.003, 0.02, 0.1, 0.6)))
        await self._peace()
        return self.outcome

    def _name(self) -> Name:
        rng = self._rng
        kind = rng.choice(tuple(NameKind))
        version = "1" if rng.random() < 0.05 else ""
        if rng.random() < 0.1:
            return Name(kind, rng.choice(("nobody", "v0", "m0")), version)
        if kind in (NameKind.VMODEL, NameKind.VMODEL_FIRST):
            return Name(kind, rng.choice(VMODELS), version)
        return Name(kind, self._clients.known_model() or "m0", version)

    def _ask(self) -> None:
        rng = self._rng
        self._begin(self._name(), rng.choice(TIMEOUTS_S), rng.choice((0.0, 0.001, 0.001, 0.01, 0.3, 2.0)))

    def _ask_much(self) -> None:
        name = self._name()
        for _ in range(self._rng.randint(2, 12)):
            self._begin(name, self._rng.choice(TIMEOUTS_S), 0.002)

    def _begin(self, name: Name, timeout_s: float, execution_s: float) -> _Call:
        request = self.dataplane.request(name, timeout_s, execution_s)
        call = _Call(request, self._clock.monotonic_s(), {self._meaning(name)})
        self._calls[id(call)] = call
        request.answer.add_done_callback(lambda _: self._answered(call))
        return call

    def _cancel(self) -> None:
        if self.dataplane.requests:
            self._rng.choice(list(self.dataplane.requests)).cancel()

    def _crash(self) -> None:
        """A server dies; the runtime notices a little later."""
        target = self._rng.choice(self.runtime.targets)
        self.outcome.crashes += 1
        self.dataplane.lose_target(target)
        for model, (_, replicas) in list(self.runtime.loaded.items()):
            if replicas[0].target_id == target and self._rng.random() < 0.5:
                del self.runtime.loaded[model]
                self.runtime.loaded[model] = (Artefact(size_bytes=0), replicas)
        asyncio.get_running_loop().call_later(self._rng.choice((0.0, 0.01, 0.2)), self._reap, target)

    def _reap(self, target: int) -> None:
        if target in self.runtime.targets:
            self.runtime.crash_target(target)

    def _blip(self) -> None:
        target = self._rng.choice(self.runtime.targets)
        self.dataplane.lose_target(target)
        asyncio.get_running_loop().call_later(0.3, self.dataplane.find_target, target)

    def _forget(self) -> None:
        if self.runtime.loaded:
            self.runtime.forget(self._rng.choice(sorted(self.runtime.loaded)))

    def _move(self) -> None:
        movable = sorted(model for model in self.runtime.loaded if model not in self.runtime.busy)
        if movable:
            change = self._rng.choice((self.runtime.move, self.runtime.spread))
            change(self._rng.choice(movable))

    def _measure(self) -> None:
        for model in sorted(self.runtime.loaded):
            self.runtime.measure(model)

    def _resize(self) -> None:
        """The budget shrinks, or memory belongs to nobody; both end with the trouble."""
        rng = self._rng
        self._honest = False
        share = rng.choice((0.5, 0.8, 1.0))
        self.runtime.resize(round(self._budget_bytes * share), rng.choice((0, 0, self._budget_bytes // 10)))

    def _register_some(self) -> None:
        self._clients.begin(self._register(f"m{self._rng.randrange(12)}"))

    async def _register(self, model: str) -> None:
        if not self._clients.is_free(model):
            return
        path = self._artefact()
        await self._clients.acknowledge(model, self.mesh.register(Registration(model, "fake", path)), path)

    def _unregister(self) -> None:
        model = self._clients.known_model()
        if model is not None:
            self._clients.begin(self._clients.acknowledge(model, self.mesh.unregister(model), None))

    def _replace(self) -> None:
        """Unregister, and at once register another artefact under the same id."""
        model = self._clients.known_model()
        if model is not None:
            self._clients.begin(self._replaced(model))

    async def _replaced(self, model: str) -> None:
        await self._clients.acknowledge(model, self.mesh.unregister(model), None)
        await self._register(model)

    def _set_vmodel(self) -> None:
        target, rng = self._clients.known_model(), self._rng
        if target is not None:
            vmodel = rng.choice(VMODELS)
            force, sync = rng.random() < 0.2, rng.random() < 0.3
            self._clients.begin(
                self._clients.quiet(self.mesh.set_vmodel(vmodel, target, force=force, sync=sync))
            )

    def _delete_vmodel(self) -> None:
        self._clients.begin(self._clients.quiet(self.mesh.delete_vmodel(self._rng.choice(VMODELS))))

    def _load(self) -> None:
        model = self._clients.known_model()
        if model is not None:
            self._clients.begin(
                self._clients.quiet(self.mesh.load(model, timeout_s=self._rng.choice((0.1, 3.0))))
            )

    def _unload(self) -> None:
        model = self._clients.known_model()
        if model is not None:
            self._clients.begin(
                self._clients.quiet(self.mesh.unload(model, timeout_s=self._rng.choice((0.1, 3.0))))
            )

    def _break(self) -> None:
        turn_storage(self._artefacts, self._rng)

    def _outage(self) -> None:
        self._store.outage = "The store is away."
        asyncio.get_running_loop().call_later(self._rng.choice((0.01, 0.5)), self._end_outage)

    def _end_outage(self) -> None:
        self._store.outage = ""

    def _pause(self) -> None:
        pass

    # --- peace ----------------------------------------------------------------------------------------------

    async def _peace(self) -> None:
        """The trouble is over: everything settles, and what can be served is."""
        mend_storage(self._artefacts)
        self._end_outage()
        for target in list(self.runtime.targets):
            self.dataplane.find_target(target)
        self.runtime.resize(self._budget_bytes)
        self._measure()
        while self._clients.calls:
            await asyncio.wait(self._clients.calls)
        while self.dataplane.requests:
            await asyncio.wait([request.answer for request in self.dataplane.requests])
        await asyncio.sleep(2.0)
        self._clients.expect(not self._calls, f"{len(self._calls)} requests were never answered")
        for model, record in self._mirror.page():
            await self._served(model, self._artefacts[record.path])
        await self._kept()
        await asyncio.sleep(6.0)
        for _ in range(400):
            # Vmodels try failed targets again at times of their own: wait for a moment in which nothing moves.
            self._measure()
            await asyncio.sleep(0.02)
            view = self.mesh.instance()
            if not (view.loads_queued or view.loads_running or view.ledger.unloading_bytes):
                break
        self._rest()
        await self._stage.stop()
        self._clients.complain()

    async def _served(self, model: str, artefact: Artefact) -> None:
        believed_bytes = max(artefact.size_bytes, artefact.estimate_bytes)
        needed_bytes = round(believed_bytes * artefact.peak_factor)
        fits = needed_bytes <= self.runtime.capacity_bytes - artefact.base_bytes
        broken = artefact.error is not None or artefact.load_s >= self.runtime.load_timeout_s
        answer = Answer(Code.UNKNOWN)
        for _ in range(12):
            call = self._begin(Name(NameKind.MODEL, model), 30.0, 0.001)
            answer = await call.request.answer
            if answer.code is Code.OK or answer.retry_after_ms < 0 or broken:
                break
            await asyncio.sleep(answer.retry_after_ms / 1000 + 0.01)
        failure = self.mesh.model(model).failure
        if fits and not broken and not (failure is not None and failure.permanent):
            self._clients.expect(answer.code is Code.OK, f"{model} is not served in peace: {answer}")
        if artefact.size_bytes > 2 * self._budget_bytes:
            self._clients.expect(answer.code is Code.RESOURCE_EXHAUSTED, f"{model} cannot fit, but: {answer}")
            self._clients.expect(
                "raise the memory" in answer.message, f"{model} cannot fit, unsaid: {answer}"
            )

    async def _kept(self) -> None:
        """Nothing acknowledged is lost: a second instance reading the store sees it."""
        fresh = Mirror()
        reader = Registrar(self._store, fresh, self._clock, self.journal)
        await reader.start()
        for model in [f"m{index}" for index in range(12)]:
            if model in self._clients.doubtful:
                continue
            record = fresh.model(model)
            stored = None if record is None else record.path
            self._clients.expect(
                stored == self._clients.registered.get(model), f"{model} is stored as {stored}"
            )
        await reader.stop()

    def _rest(self) -> None:
        """At rest the mesh's books and the runtime's are the same."""
        loaded = {
            model
            for model in self.runtime.loaded
            if (copy := self.mesh.copy(model)) and copy.state is State.LOADED
        }
        self._clients.expect(
            loaded == set(self.runtime.loaded),
            f"the runtime holds {sorted(self.runtime.loaded)}, known: {loaded}",
        )
        self._clients.expect(
            set(self.dataplane.routes) == loaded, f"routes {sorted(self.dataplane.routes)} for {loaded}"
        )
        for model in sorted(self.dataplane.routes):
            copy = self.mesh.copy(model)
            held_bytes = self.runtime.weight_bytes(model)
            self._clients.expect(
                copy is not None and copy.size_bytes == held_bytes, f"the size of {model} is wrong"
            )
        view = self.mesh.instance()
        self._clients.expect(view.loads_queued == view.loads_running == 0, "loads are left at rest")
        self._clients.expect(
            view.ledger.loading_bytes == view.ledger.unloading_bytes == 0, f"bytes are left: {view.ledger}"
        )
        self._clients.expect(not self.runtime.residue, f"remains of {sorted(self.runtime.residue)}")
        self.outcome.loads, self.outcome.evictions = view.loads_total, view.evictions_total

    # --- checks ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """After every step of the loop."""
        self.outcome.steps += 1
        if not self._playing:
            return
        self.mesh.check()
        for model, replicas in self.dataplane.routes.items():
            copy = self.mesh.copy(model)
            self._clients.expect(
                copy is not None and copy.state is State.LOADED, f"a route to {model}, which is not loaded"
            )
            if copy is not None and copy.retirement is None:
                self._clients.expect(
                    set(replicas) <= set(copy.replicas), f"the route of {model} is not its replicas"
                )
        if self._honest:
            over_bytes = self.runtime.used_bytes - self.runtime.budget_bytes
            self._clients.expect(over_bytes <= 0, f"memory is over the budget by {over_bytes}")
        now_s = self._clock.monotonic_s()
        for request in self.dataplane.requests:
            self._clients.expect(
                now_s <= request.deadline_s + 1e-6, f"a request for {request.name} outlived its deadline"
            )
        self._clients.note(self.runtime.violations + self.dataplane.violations)
        self._clients.complain()

    def _meaning(self, name: Name) -> str | None:
        """What the registry says a name means now; the mesh must not disagree."""
        mirror = self._mirror
        versioned = mirror.vmodel(f"{name.name}:{name.version}") if name.version else None
        if versioned is not None and name.kind is not NameKind.MODEL:
            return versioned.active
        vmodel = mirror.vmodel(name.name)
        candidates = {
            NameKind.MODEL: (True,), NameKind.VMODEL: (False,),
            NameKind.MODEL_FIRST: (True, False), NameKind.VMODEL_FIRST: (False, True),
        }  # fmt: skip
        for as_model in candidates[name.kind]:
            if as_model and mirror.model(name.name) is not None:
                return name.name
            if not as_model and vmodel is not None:
                return vmodel.active
        return None

    def _names_changed(self, changed: ChangedIds) -> None:
        for call in self._calls.values():
            call.meanings.add(self._meaning(call.request.name))

    def _answered(self, call: _Call) -> None:
        self._calls.pop(id(call), None)
        if call.request.answer.cancelled():
            return
        answer = call.request.answer.result()
        self.outcome.answers[answer.code.name] = self.outcome.answers.get(answer.code.name, 0) + 1
        if answer.code is Code.OK:
            known = answer.model in call.meanings
            self._clients.expect(
                known, f"{call.request.name} was served by {answer.model}, but means {call.meanings}"
            )
        elif "model not found:" in answer.message:
            known = None in call.meanings or len(call.meanings) > 1
            self._clients.expect(known, f"{call.request.name} was not found, but means {call.meanings}")


def simulate(seed: int, actions: int = 70, prepare: Callable[[Simulation], None] | None = None) -> Outcome:
    """Play one seed. Raises what broke, with the seed in its notes."""
    simulation = Simulation(seed, actions)
    if prepare is not None:
        prepare(simulation)
    try:
        return run(simulation.play(), after_step=simulation.check)
    except BaseException as error:
        error.add_note(f"Seed {seed}: MODELMESH_SEED={seed} runs it alone.")
        raise
