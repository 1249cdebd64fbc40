"""Vmodels under every sequence of calls, loads that end well or badly, time and restarts, against a naive second model."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelmesh.clock import LoopClock
from modelmesh.errors import ModelMeshError
from modelmesh.journal import Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming import transitions
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.naming.vmodel_rules import Setting
from modelmesh.mesh.naming.vmodels import VModels
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import REGISTRY, VMODELS, ModelRecord, VModelRecord
from modelmesh.store.memory import MemoryStore
from modelmesh.testing.loop import VirtualLoop

models = st.sampled_from("abcd")
names = st.sampled_from("uvw")
owners = st.sampled_from(["", "", "ann", "bob"])
maybe_type = st.sampled_from([None, "x", "x", "y"])
expected = st.sampled_from(["", "", "", "a", "b"])
flags = st.booleans()


class Loads:
    """Every load waits until the test ends it."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.waiting: dict[str, list[asyncio.Future[None]]] = {}

    async def ensure_loaded(self, model: str, *, why: str) -> None:
        if model not in self.loaded:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.setdefault(model, []).append(future)
            await future

    def end(self, model: str, *, well: bool) -> None:
        if well:
            self.loaded.add(model)
        for future in self.waiting.pop(model, ()):
            if not future.done() and well:
                future.set_result(None)
            elif not future.done():
                future.set_exception(ModelMeshError("The file is torn."))

    async def bring(self, model: str, copies: int, *, beside: str, why: str) -> None:
        await self.ensure_loaded(model, why=why)

    def copies(self, model: str) -> int:
        return int(model in self.loaded)

    def failure(self, model: str) -> str:
        return ""


@dataclass
class Name:
    active: str
    target: str
    owner: str
    failed: bool = False
    trying: bool = True
    """A load of the target is waited for."""


@dataclass
class Naive:
    """References are counted by looking at all vmodels, nothing is written twice."""

    models: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Model -> its type, and whether it goes with its last reference."""
    names: dict[str, Name] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)

    def references(self, model: str) -> int:
        return sum(model in (name.active, name.target) for name in self.names.values())

    def register(self, model: str, type: str) -> bool:
        return self.models.setdefault(model, (type, False))[0] == type

    def unregister(self, model: str) -> bool:
        if self.references(model):
            return False
        self.models.pop(model, None)
        return True

    def set(self, setting: Setting) -> bool:
        old, target = self.names.get(setting.vmodel), setting.target
        type = setting.model.type if setting.model is not None else None
        allowed = (
            (old is not None or not setting.update_only)
            and (old is None or setting.owner in ("", old.owner))
            and self._expected(setting, old)
            and (target in self.models if type is None else self.models.get(target, (type,))[0] == type)
        )
        if not allowed:
            return False
        if type is not None:
            self.models.setdefault(target, (type, setting.auto_delete_target))
        if old is None:
            self.names[setting.vmodel] = Name(target, target, setting.owner or "default")
        elif old.target != target or (setting.force and old.active != target):
            at_once = setting.force or old.active not in self.loaded or target in self.loaded
            self.point(setting.vmodel, Name(target if at_once else old.active, target, old.owner))
        return True

    @staticmethod
    def _expected(setting: Setting, old: Name | None) -> bool:
        present = setting.target if old is None else old.target
        return not setting.expected_target or present in (
            (setting.expected_target,) if old is None else (setting.expected_target, setting.target)
        )

    def delete(self, name: str, owner: str) -> None:
        if name in self.names and owner in ("", self.names[name].owner):
            self.point(name, None)

    def point(self, name: str, new: Name | None) -> None:
        old = self.names.pop(name)
        if new is not None:
            self.names[name] = new
        for model in {old.active, old.target}:
            if self.models.get(model, ("", False))[1] and not self.references(model):
                del self.models[model]

    def unsettled(self) -> list[tuple[str, Name]]:
        return [(id, name) for id, name in self.names.items() if name.active != name.target]

    def switch(self, id: str) -> None:
        name = self.names[id]
        self.point(id, Name(name.target, name.target, name.owner))

    def load_ended(self, model: str, *, well: bool) -> None:
        if well:
            self.loaded.add(model)
        for id, name in self.unsettled():
            if name.target == model and name.trying and well:
                self.switch(id)
            elif name.target == model and name.trying:
                name.failed, name.trying = True, False

    def tried_again(self) -> None:
        for id, name in self.unsettled():
            if name.target in self.loaded:
                self.switch(id)
            name.trying = True

    def restarted(self) -> None:
        self.loaded.clear()
        for id, name in self.unsettled():
            if not name.failed:
                self.switch(id)
            name.trying = True


class Sequences(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patient = patch.object(transitions, "LOAD_S", 1e9)
        """Loads end when the test says so, never for taking too long."""
        self.patient.start()
        self.loop = VirtualLoop()
        self.store = MemoryStore()
        self.naive = Naive()
        self.run(self.begin())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        async def settled() -> None:
            await work
            for _ in range(60):
                await asyncio.sleep(0)

        self.loop.run_until_complete(settled())

    def attempt(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Whether a call succeeds; what it began is done as far as it goes."""
        outcome: list[bool] = []

        async def tried() -> None:
            try:
                await work
                outcome.append(True)
            except ModelMeshError:
                outcome.append(False)

        self.run(tried())
        return outcome[0]

    async def begin(self) -> None:
        self.loads = Loads()
        clock = LoopClock(1e9)
        journal = Journal(clock)
        self.registrar = Registrar(self.store, Mirror(), clock, journal)
        await self.registrar.start()
        self.vmodels = VModels(self.registrar, self.loads, clock, journal, default_owner="default")
        self.vmodels.start()

    async def end(self) -> None:
        await self.vmodels.stop()
        await self.registrar.stop()

    @initialize(loaded=st.frozensets(models))
    def load(self, loaded: frozenset[str]) -> None:
        for model in loaded:
            self.load_ends(model, True)

    @rule(model=models, type=st.sampled_from("xxy"))
    def register(self, model: str, type: str) -> None:
        assert self.attempt(self.registrar.register(Registration(model, type))) == self.naive.register(
            model, type
        )

    @rule(model=models)
    def unregister(self, model: str) -> None:
        assert self.attempt(self.registrar.unregister(model)) == self.naive.unregister(model)

    @rule(
        name=names, to=models, type=maybe_type, auto=flags, force=st.sampled_from([False, False, True]),
        expected=expected, owner=owners, update=st.sampled_from([False, False, True]),
    )  # fmt: skip
    def set(
        self,
        name: str,
        to: str,
        type: str | None,
        auto: bool,
        force: bool,
        expected: str,
        owner: str,
        update: bool,
    ) -> None:
        model = None if type is None else Registration("", type)
        setting = Setting(
            name,
            to,
            model,
            auto,
            force=force,
            expected_target=expected,
            owner=owner,
            update_only=update,
        )
        assert self.attempt(self.vmodels.set(setting)) == self.naive.set(setting)

    @rule(name=names, to=models, auto=flags)
    def move(self, name: str, to: str, auto: bool) -> None:
        """Nothing is in the way of this one, so that transitions are many."""
        setting = Setting(name, to, Registration("", self.naive.models.get(to, ("x",))[0]), auto)
        assert self.attempt(self.vmodels.set(setting))
        assert self.naive.set(setting)

    @rule(name=names, owner=owners)
    def delete(self, name: str, owner: str) -> None:
        self.run(self.vmodels.delete(name, owner=owner))
        self.naive.delete(name, owner)

    @rule(model=models, well=flags)
    def load_ends(self, model: str, well: bool) -> None:
        async def ended() -> None:
            self.loads.end(model, well=well)

        self.run(ended())
        self.naive.load_ended(model, well=well)

    @precondition(lambda self: self.loads.waiting)
    @rule(pick=st.integers(0, 3), well=flags)
    def a_load_that_is_waited_for_ends(self, pick: int, well: bool) -> None:
        waited_for = sorted(self.loads.waiting)
        self.load_ends(waited_for[pick % len(waited_for)], well)

    @rule()
    def time_passes(self) -> None:
        self.run(asyncio.sleep(1000))
        self.naive.tried_again()

    @rule()
    def restart(self) -> None:
        self.run(self.end())
        self.run(self.begin())
        self.naive.restarted()

    @invariant()
    def the_store_is_as_it_should_be(self) -> None:
        async def compare() -> None:
            stored = {
                entry.key[len(REGISTRY) :]: ModelRecord.decode(entry.value)
                for entry in (await self.store.snapshot(REGISTRY)).entries
            }
            pointing = {
                entry.key[len(VMODELS) :]: VModelRecord.decode(entry.value)
                for entry in (await self.store.snapshot(VMODELS)).entries
            }
            assert {
                id: (record.active, record.target, record.owner, record.failed)
                for id, record in pointing.items()
            } == {
                id: (name.active, name.target, name.owner, name.failed)
                for id, name in self.naive.names.items()
            }
            assert {
                id: (record.type, record.auto_delete, record.references) for id, record in stored.items()
            } == {id: (*facts, self.naive.references(id)) for id, facts in self.naive.models.items()}

        self.run(compare())

    def teardown(self) -> None:
        try:
            self.run(self.end())
        finally:
            self.loop.close()
            self.patient.stop()
        assert not self.loop.errors, self.loop.errors


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
