"""Vmodels: the rules of setting and deleting, and transitions, under virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from modelmesh.clock import LoopClock
from modelmesh.errors import (
    AlreadyExists,
    Code,
    FailedPrecondition,
    InvalidInput,
    LoadFailed,
    LoadTimeout,
    ModelMeshError,
    ModelNotFound,
    NoCapacity,
    RuntimeUnavailable,
)
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.targets import VMODEL_ACTIVE, VMODEL_TARGET, Targets
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.naming.transitions import RUNNING
from modelmesh.mesh.naming.vmodel_rules import REASON_MAX, Setting, switch_in
from modelmesh.mesh.naming.vmodels import VModels
from modelmesh.mesh.views import VModelView
from modelmesh.registry.keep import NO_KEEP, Keep, KeepChange
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import ModelRecord
from modelmesh.store.memory import MemoryStore
from modelmesh.store.protocol import Commit, Txn
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage


@dataclass
class FakeLoader:
    """Loads take `load_s`; `broken` maps a model to the error its loads end with."""

    load_s: float = 1.0
    loaded: set[str] = field(default_factory=set)
    broken: dict[str, ModelMeshError] = field(default_factory=dict)
    held: set[tuple[str, str]] = field(default_factory=set)
    tried: list[str] = field(default_factory=list)
    loading: int = 0
    most_loading: int = 0

    async def ensure_loaded(self, model: str, *, why: str) -> None:
        assert why
        self.tried.append(model)
        self.loading += 1
        self.most_loading = max(self.most_loading, self.loading)
        try:
            await asyncio.sleep(self.load_s)
        finally:
            self.loading -= 1
        if model in self.broken:
            raise self.broken[model]
        self.loaded.add(model)

    async def bring(self, model: str, copies: int, *, beside: str, why: str) -> None:
        assert beside
        await self.ensure_loaded(model, why=why)

    def copies(self, model: str) -> int:
        return int(model in self.loaded)

    def get(self, model: str) -> FakeLoader | None:
        return self if model in self.loaded else None

    def hold(self, model: str, why: str) -> None:
        self.held.add((model, why))

    def release(self, model: str, why: str) -> None:
        self.held.discard((model, why))

    def failure(self, model: str) -> str:
        return str(self.broken.get(model, ""))


@dataclass
class House:
    store: MemoryStore
    registrar: Registrar
    vmodels: VModels
    loader: FakeLoader
    journal: Journal

    def references(self, model: str) -> int | None:
        record = self.registrar.mirror.model(model)
        return None if record is None else record.references

    def active(self, vmodel: str) -> str:
        return self.vmodels.view(vmodel).active

    async def set(self, vmodel: str, target: str, *, sync: bool = False, **rest: object) -> VModelView:
        return await self.vmodels.set(replace(Setting(vmodel, target), **rest), sync=sync)


def with_house(scenario: Callable[[House], Awaitable[None]], *models: str) -> None:
    """Run a scenario with these models registered."""

    async def main() -> None:
        store = MemoryStore()
        house = await furnish(store)
        for model in models or "abc":
            await house.registrar.register(Registration(model, "onnx", f"/{model}"))
        await scenario(house)
        await leave(house)

    run(main())


async def furnish(store: MemoryStore, loader: FakeLoader | None = None, owner: str = "") -> House:
    clock = LoopClock(1_700_000_000.0)
    journal = Journal(clock)
    registrar = Registrar(store, Mirror(), clock, journal)
    loader = loader or FakeLoader()
    vmodels = VModels(registrar, loader, clock, journal, default_owner=owner)
    targets = Targets(registrar.mirror, loader, loader)
    await registrar.start()
    targets.start()
    registrar.on_change(targets.follow)
    vmodels.start()
    return House(store, registrar, vmodels, loader, journal)


async def leave(house: House) -> None:
    await house.vmodels.stop()
    await house.registrar.stop()


def test_a_new_vmodel_points_at_its_target_at_once() -> None:
    async def scenario(house: House) -> None:
        assert await house.set("v", "a") == VModelView("v", "", "a", "a", False, "")
        assert house.references("a") == 1
        assert house.loader.tried == []

    with_house(scenario)


def test_the_target_is_registered_when_it_is_given() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "new", model=Registration("", "onnx", "/new"), auto_delete_target=True)
        assert house.registrar.mirror.model("new") == ModelRecord(
            "onnx", "/new", references=1, auto_delete=True
        )
        await house.set("v", "a", model=Registration("a", "onnx", "/a"), auto_delete_target=True)
        assert house.registrar.mirror.model("new") is None, "it only lived for this vmodel"
        record = house.registrar.mirror.model("a")
        assert record is not None
        assert not record.auto_delete, "a model registered by hand stays"
        with pytest.raises(AlreadyExists):
            await house.set("v", "b", model=Registration("", "onnx", "/elsewhere"))
        with pytest.raises(InvalidInput):
            await house.set("v", "b", model=Registration("x", "onnx"))
        with pytest.raises(InvalidInput):
            await house.set("v", "typeless", model=Registration("", ""))
        assert house.active("v") == "a"

    with_house(scenario)


def test_what_is_missing_is_told() -> None:
    async def scenario(house: House) -> None:
        with pytest.raises(ModelNotFound, match="model not found"):
            await house.set("v", "absent")
        with pytest.raises(ModelNotFound, match="vmodel not found"):
            await house.set("v", "a", update_only=True)
        for vmodel, target in (("", "a"), ("v", ""), (" ", "a")):
            with pytest.raises(InvalidInput):
                await house.set(vmodel, target)
        with pytest.raises(ModelNotFound, match="vmodel not found"):
            house.vmodels.view("v")
        await house.set("v", "a")
        assert (await house.set("v", "b", update_only=True)).active == "b"

    with_house(scenario)


@pytest.mark.parametrize(
    ("present", "expected", "target", "allowed"),
    [
        ("", "a", "a", True),
        ("", "b", "a", False),
        ("a", "a", "b", True),
        ("a", "b", "b", False),
        ("b", "a", "b", True),
        ("a", "c", "a", True),
        ("a", "", "b", True),
    ],
)
def test_the_expected_target_decides(present: str, expected: str, target: str, allowed: bool) -> None:
    async def scenario(house: House) -> None:
        if present:
            await house.set("v", present)
        if allowed:
            assert (await house.set("v", target, expected_target=expected)).target == target
        else:
            with pytest.raises(FailedPrecondition, match="expected"):
                await house.set("v", target, expected_target=expected)

    with_house(scenario)


def test_how_a_model_is_kept_goes_with_the_name() -> None:
    async def scenario(house: House) -> None:
        def keep(model: str) -> Keep:
            record = house.registrar.mirror.model(model)
            assert record is not None
            return record.keep

        kept = Keep(min_copies=2, priority=4.0)
        await house.set("v", "a")
        await house.registrar.keep("a", KeepChange(min_copies=2, priority=4.0))
        house.loader.loaded.add("a")
        moving = asyncio.create_task(house.set("v", "b", sync=True))
        await asyncio.sleep(0.5)
        assert (keep("a"), keep("b")) == (kept, NO_KEEP), "not before the switch: a target may yet fail"
        assert (await moving).active == "b"
        assert (keep("a"), keep("b")) == (NO_KEEP, kept)

        new = Registration("", "onnx", "/new")
        await house.set("v", "new", model=new, auto_delete_target=True, sync=True)
        assert (keep("b"), keep("new")) == (NO_KEEP, kept)
        await house.set("v", "b", force=True)
        assert house.registrar.mirror.model("new") is None
        assert keep("b") == kept, "also from a model that is gone with this"

        await house.registrar.keep("c", KeepChange(pin=True))
        await house.set("v", "c", force=True)
        assert (keep("b"), keep("c")) == (kept, Keep(pin=True)), "terms of its own"

        await house.set("w", "c")
        await house.set("v", "a", force=True)
        assert keep("a") == keep("c") == Keep(pin=True), "another name may rely on them"

    with_house(scenario)


def test_a_target_that_fails_takes_nothing_over() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        await house.registrar.keep("a", KeepChange(pin=True))
        house.loader.loaded.add("a")
        house.loader.broken["b"] = LoadFailed("It is torn.")
        assert (await house.set("v", "b", sync=True)).target_failed
        record = house.registrar.mirror.model("b")
        assert record is not None and record.keep == NO_KEEP

    with_house(scenario)


def test_owners() -> None:
    async def scenario(house: House) -> None:
        await house.set("owned", "a", owner="me")
        await house.set("free", "a")
        for vmodel, owner in (("owned", "you"), ("free", "me")):
            with pytest.raises(AlreadyExists, match=vmodel):
                await house.set(vmodel, "b", owner=owner)
            await house.vmodels.delete(vmodel, owner=owner)
            with pytest.raises(ModelNotFound):
                house.vmodels.view(vmodel, owner=owner)
        assert (await house.set("owned", "b")).owner == "me"
        assert (await house.set("owned", "c", owner="me")).active == "c"
        await house.vmodels.delete("owned")
        await house.vmodels.delete("never")
        assert [view.id for view in house.vmodels.views()] == ["free"]
        assert [house.references(model) for model in "abc"] == [1, 0, 0]

    with_house(scenario)


def test_new_vmodels_get_the_default_owner() -> None:
    async def main() -> None:
        house = await furnish(MemoryStore(), owner="ksp")
        await house.registrar.register(Registration("a", "onnx"))
        assert (await house.set("v", "a")).owner == "ksp"
        assert (await house.set("w", "a", owner="me")).owner == "me"
        await leave(house)

    run(main())


def test_a_cold_vmodel_moves_without_loading() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        view = await house.set("v", "b")
        assert (view.active, view.target) == ("b", "b")
        assert [house.references(model) for model in "ab"] == [0, 1]
        await asyncio.sleep(100)
        assert house.loader.tried == []

    with_house(scenario)


def test_the_target_is_loaded_and_held_before_the_switch_and_a_while_after() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.loader.loaded.add("a")
        view = await house.set("v", "b")
        assert (view.active, view.target) == ("a", "b")
        assert [house.references(model) for model in "ab"] == [1, 1]
        await asyncio.sleep(0.9)
        assert house.active("v") == "a"
        assert house.loader.held == {("a", VMODEL_ACTIVE), ("b", VMODEL_TARGET)}
        await asyncio.sleep(0.2)
        assert house.active("v") == "b"
        assert [house.references(model) for model in "ab"] == [0, 1]
        assert house.loader.held == {("b", VMODEL_TARGET)}
        assert any("b" in entry.reason for entry in house.journal.about("v") if entry.did is Did.SWITCHED)
        await asyncio.sleep(10)
        assert house.loader.held == set()

    with_house(scenario)


def test_sync_waits_for_the_end() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.loader.loaded.add("a")
        began_s = asyncio.get_running_loop().time()
        assert (await house.set("v", "b", sync=True)).active == "b"
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(1.0, abs=0.1)
        house.loader.broken["c"] = LoadFailed("bad artefact", code=Code.INVALID_ARGUMENT)
        view = await house.set("v", "c", sync=True)
        assert (view.active, view.target, view.target_failed, view.reason) == ("b", "c", True, "bad artefact")

    with_house(scenario)


def test_sync_ends_when_the_vmodel_has_other_plans_or_is_gone() -> None:
    async def scenario(house: House) -> None:
        house.loader.load_s = 50
        await house.set("v", "a")
        house.loader.loaded.add("a")
        waiting = asyncio.create_task(house.set("v", "b", sync=True))
        await asyncio.sleep(1)
        await house.set("v", "c")
        view = await waiting
        assert (view.active, view.target) == ("a", "c")
        waiting = asyncio.create_task(house.set("v", "b", sync=True))
        await asyncio.sleep(1)
        await house.vmodels.delete("v")
        view = await waiting
        assert (view.active, view.target, view.reason) == ("", "", "It was deleted meanwhile.")

    with_house(scenario)


def test_a_caller_that_stops_waiting_leaves_the_load_running() -> None:
    async def scenario(house: House) -> None:
        house.loader.load_s = 50
        model = Registration("n", "onnx", "/n")
        waiting = asyncio.create_task(house.set("v", "n", model=model, load_now=True, sync=True))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.sleep(60)
        assert waiting.cancelled()
        assert "n" in house.loader.loaded

    with_house(scenario)


def test_sync_has_a_deadline_but_the_transition_goes_on() -> None:
    async def scenario(house: House) -> None:
        house.loader.load_s = 300
        await house.set("v", "a")
        house.loader.loaded.add("a")
        with pytest.raises(LoadTimeout, match="goes on"):
            await house.set("v", "b", sync=True)
        await asyncio.sleep(100)
        assert house.active("v") == "b"

    with_house(scenario)


def test_a_failed_target_leaves_the_active_model_and_is_tried_again() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.loader.loaded.add("a")
        house.loader.broken["b"] = LoadFailed("no such file", code=Code.NOT_FOUND, retry_after_s=30)
        await house.set("v", "b")
        await asyncio.sleep(5)
        view = house.vmodels.view("v")
        assert (view.active, view.target, view.target_failed, view.reason) == ("a", "b", True, "no such file")
        assert house.loader.held == {("b", VMODEL_TARGET)}, (
            "the active model has to be worth its memory meanwhile"
        )
        assert any("no such file" in entry.reason for entry in house.journal.about("v"))
        house.loader.loaded.clear()
        await asyncio.sleep(20)
        assert house.loader.tried == ["b"]
        await asyncio.sleep(20)
        assert house.loader.tried == ["b", "b"], "tried again when the failure expired"
        assert house.active("v") == "a", (
            "also a cold active model stays while its target is known to be broken"
        )
        del house.loader.broken["b"]
        await asyncio.sleep(40)
        assert house.vmodels.view("v") == VModelView("v", "", "b", "b", False, "")

    with_house(scenario)


def test_tries_become_rarer() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.loader.loaded.add("a")
        house.loader.broken["b"] = NoCapacity("no room")
        await house.set("v", "b")
        await asyncio.sleep(3600)
        assert 6 <= len(house.loader.tried) <= 10

    with_house(scenario)


def test_a_runtime_that_is_away_is_no_failure_of_the_target() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.loader.loaded.add("a")
        house.loader.broken["b"] = RuntimeUnavailable("starting")
        await house.set("v", "b")
        await asyncio.sleep(20)
        assert not house.vmodels.view("v").target_failed
        del house.loader.broken["b"]
        await asyncio.sleep(10)
        assert house.active("v") == "b"

    with_house(scenario)


def test_an_abandoned_target_is_let_go() -> None:
    async def scenario(house: House) -> None:
        house.loader.load_s = 10
        await house.set("v", "a")
        house.loader.loaded.add("a")
        await house.set("v", "x", model=Registration("", "onnx", "/x"), auto_delete_target=True)
        await asyncio.sleep(1)
        await house.set("v", "b")
        assert house.registrar.mirror.model("x") is None
        await asyncio.sleep(1)
        assert house.loader.held == {("a", VMODEL_ACTIVE), ("b", VMODEL_TARGET)}
        assert house.loader.loading == 1
        await asyncio.sleep(15)
        assert house.active("v") == "b"
        assert [house.references(model) for model in "ab"] == [0, 1]

    with_house(scenario)


def test_going_back_to_the_active_model_counts_it_once() -> None:
    async def scenario(house: House) -> None:
        house.loader.load_s = 10
        await house.set("v", "a")
        house.loader.loaded.add("a")
        await house.set("v", "b")
        await asyncio.sleep(1)
        assert (await house.set("v", "a")).target == "a"
        assert [house.references(model) for model in "ab"] == [1, 0]
        await asyncio.sleep(20)
        assert house.active("v") == "a"
        assert house.loader.held == set()
        await house.vmodels.delete("v")
        await house.registrar.unregister("a")

    with_house(scenario)


def test_force_switches_at_once_and_counts_once() -> None:
    async def scenario(house: House) -> None:
        house.loader.load_s = 10
        await house.set("v", "a")
        house.loader.loaded.add("a")
        await house.set("v", "b")
        assert (await house.set("v", "b")).active == "a", "without force nothing changes"
        assert (await house.set("v", "b", force=True)).active == "b"
        assert (await house.set("v", "b", force=True)).active == "b"
        assert [house.references(model) for model in "ab"] == [0, 1]

    with_house(scenario)


def test_a_loaded_target_needs_no_transition() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.loader.loaded |= {"a", "b"}
        assert (await house.set("v", "b")).active == "b"

    with_house(scenario)


def test_load_now() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a", load_now=True)
        assert house.loader.loaded == set()
        await asyncio.sleep(2)
        assert house.loader.loaded == {"a"}
        await house.set("w", "n", model=Registration("", "onnx"), load_now=True, sync=True)
        assert house.loader.loaded == {"a", "n"}
        house.loader.broken["b"] = LoadFailed("bad")
        assert (
            await house.set("u", "b", model=Registration("b", "onnx", "/b"), load_now=True, sync=True)
        ).active == "b"

    with_house(scenario)


def test_the_target_inherits_the_last_use() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.registrar.used("a", 1_690_000_000_000)
        await asyncio.sleep(100)
        await house.set("v", "b")
        await house.set("v", "c")
        await house.set("w", "a")
        await house.set("w", "b", load_now=True)
        used = {model: house.registrar.mirror.model(model) for model in "abc"}
        assert {model: record.last_used_ms for model, record in used.items() if record} == dict.fromkeys(
            "abc", 1_690_000_000_000
        )

    with_house(scenario)


def test_a_name_that_follows_versions_waits_for_the_new_one_also_when_cold() -> None:
    async def scenario(house: House) -> None:
        await house.set("iris", "iris:1@aa")
        house.loader.broken["iris:2@bb"] = LoadFailed("bad")
        await house.set("iris", "iris:2@bb")
        await asyncio.sleep(5)
        assert house.active("iris") == "iris:1@aa"
        del house.loader.broken["iris:2@bb"]
        await asyncio.sleep(30)
        assert house.active("iris") == "iris:2@bb"

    with_house(scenario, "iris:1@aa", "iris:2@bb")


def test_many_transitions_take_turns() -> None:
    async def scenario(house: House) -> None:
        n = 5 * RUNNING
        await house.vmodels.set_many([Setting(f"v{i}", "a") for i in range(n)])
        house.loader.loaded.add("a")
        answers = await house.vmodels.set_many(
            [Setting(f"v{i}", f"t{i}", model=Registration("", "onnx")) for i in range(n)]
            + [Setting("bad", "absent")]
        )
        assert answers[:-1] == [None] * n
        assert isinstance(answers[-1], ModelNotFound)
        await asyncio.sleep(20)
        assert {view.active for view in house.vmodels.views()} == {f"t{i}" for i in range(n)}
        assert house.loader.most_loading == RUNNING
        assert house.references("a") == 0
        await house.vmodels.delete_many([f"v{i}" for i in range(n)])
        assert house.registrar.mirror.n_vmodels == 0

    with_house(scenario)


def test_transitions_are_taken_up_after_a_restart() -> None:
    async def main() -> None:
        store = MemoryStore()
        house = await furnish(store)
        for model in "ab":
            await house.registrar.register(Registration(model, "onnx"))
        await house.set("v", "a")
        house.loader.loaded.add("a")
        await house.set("v", "b")
        await leave(house)
        assert house.active("v") == "a"
        again = await furnish(store, house.loader)
        await asyncio.sleep(5)
        assert again.active("v") == "b"
        await leave(again)

    run(main())


def test_a_store_that_is_away_delays_the_switch() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.loader.loaded.add("a")
        await house.set("v", "b")
        await asyncio.sleep(0.5)
        house.store.outage = "The store is away."
        await asyncio.sleep(20)
        assert house.active("v") == "a"
        house.store.outage = ""
        await asyncio.sleep(10)
        assert house.active("v") == "b"

    with_house(scenario)


def test_a_vmodel_whose_model_record_is_missing_can_be_moved_and_deleted() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        from modelmesh.store.protocol import Txn

        await house.store.commit(Txn(deletes=["registry/a"]))
        await house.registrar.wait_current()
        assert (await house.set("v", "b")).active == "b"
        await house.vmodels.delete("v")
        assert house.references("b") == 0

    with_house(scenario)


def test_a_bad_artefact_is_tried_again_seldom_and_calling_it_off_is_no_switch() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.loader.loaded.add("a")
        house.loader.broken["b"] = LoadFailed("bad", code=Code.INVALID_ARGUMENT)
        await house.set("v", "b")
        await asyncio.sleep(3600)
        assert 3 <= len(house.loader.tried) <= 6
        await house.set("v", "a")
        assert house.journal.about("v")[-1].reason == "It stays with a; no other target is tried any more."
        house.loader.tried.clear()
        await asyncio.sleep(3600)
        assert house.loader.tried == []

    with_house(scenario)


def test_a_mirror_that_is_behind_does_not_make_a_switch_be_tried_without_rest() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            for model in ("m1", "m2"):
                await stage.register(model)
            await stage.mesh.set_vmodel("v", "m1")
            await stage.mesh.load("m1")
            fresh = Registrar(stage.store, Mirror(), stage.clock, stage.journal)
            await fresh.start()
            artefact = stage.artefacts["m2/1"]
            artefact.load_s = 1.0
            await stage.mesh.set_vmodel("v", "m2")
            stage.registrar._tasks[0].cancel()  # the mirror falls behind
            await fresh.wait_current()
            await fresh.transact(lambda draft: switch_in(draft, "v", "m2"))
            tried: list[object] = []
            commit = stage.store.commit

            async def counted(txn: Txn) -> Commit:
                tried.append(txn)
                return await commit(txn)

            stage.store.commit = counted  # type: ignore[method-assign]
            await asyncio.sleep(20.0)
            assert 1 <= len(tried) <= 10
            await fresh.stop()

    run(scene())


def test_a_long_reason_is_cut() -> None:
    async def scenario(house: House) -> None:
        await house.set("v", "a")
        house.loader.loaded.add("a")
        house.loader.broken["b"] = LoadFailed("line after line of a trace " * 100)
        view = await house.set("v", "b", sync=True)
        assert len(view.reason) == REASON_MAX
        assert view.reason.endswith("…")

    with_house(scenario)


def test_an_instance_alone_without_room_for_both_models_moves_nevertheless() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=1000) as stage:
            await stage.register("m1", Artefact(size_bytes=800))
            await stage.register("m2", Artefact(size_bytes=800))
            await stage.mesh.set_vmodel("v", "m1")
            await stage.ask("v").answer
            view = await stage.mesh.set_vmodel("v", "m2", sync=True)
            assert (view.active, view.target_failed) == ("m2", False)
            assert (await stage.ask("v").answer).model == "m2"

    run(scene())
