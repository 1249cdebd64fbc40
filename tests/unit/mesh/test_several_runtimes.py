"""Two runtimes behind one mesh: each has its types, its bytes and its troubles."""

from __future__ import annotations

from modelmesh.errors import Code, RuntimeUnavailable, SettingsError
from modelmesh.journal import Did
from modelmesh.policy.runtimes import Constraint, Offer
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage, raised

FIRST, SECOND = Offer("first", frozenset({"a"})), Offer("second", frozenset({"b"}), frozenset({"gpu"}))


def test_each_model_loads_where_its_type_is_served_and_evicts_only_there() -> None:
    async def scene() -> None:
        async with Stage(budget_bytes=2000, offers=(FIRST, SECOND)) as stage:
            await stage.register("a1", Artefact(size_bytes=1500), "a")
            for model in ("b1", "b2"):
                await stage.register(model, Artefact(size_bytes=1500), "b")
            for model in ("a1", "b1", "b2"):
                assert (await stage.ask(model).answer).code is Code.OK
            assert [sorted(runtime.loaded) for runtime in stage.runtimes] == [["a1"], ["b2"]]
            assert [entry.model for entry in stage.told(Did.EVICTED)] == ["b1"]
            assert stage.told(Did.EVICTED)[0].numbers["runtime"] == "second"
            view = stage.mesh.instance()
            assert (view.ledger.capacity_bytes, view.ledger.loaded_bytes) == (4000, 3000)
            assert [runtime.ledger.loaded_bytes for runtime in view.runtimes] == [1500, 1500]
            assert [row[0] for row in stage.mesh.memory()] == ["first/fake", "second/fake"]
            stage.mesh.check()

    run(scene())


def test_a_type_nobody_serves_is_refused_with_the_types_that_are_served() -> None:
    async def scene() -> None:
        async with Stage(offers=(FIRST, SECOND), constraints={"a": Constraint(frozenset({"gpu"}))}) as stage:
            await stage.register("c1", type="c")
            await stage.register("a1", type="a")
            answer = await stage.ask("c1").answer
            assert answer.code is Code.FAILED_PRECONDITION
            assert "No runtime here serves type c; there are a, b." in answer.message
            answer = await stage.ask("a1").answer
            assert "requires the labels gpu; first has none." in answer.message
            assert "serves type c" in str(await raised(stage.mesh.load("c1")))

    run(scene())


def test_a_runtime_that_cannot_start_refuses_its_own_models_only_and_is_tried_again() -> None:
    async def scene() -> None:
        stage = Stage(offers=(FIRST, SECOND))
        stage.runtimes[1].start_error = RuntimeUnavailable("Nobody listens.")
        async with stage:
            await stage.register("a1", type="a")
            await stage.register("b1", type="b")
            assert (await stage.ask("a1").answer).code is Code.OK
            await stage.until(lambda: bool(stage.told(Did.WARNED)))
            answer = await stage.ask("b1").answer
            assert answer.code is Code.UNAVAILABLE
            assert "The runtime second could not be started: Nobody listens." in answer.message
            assert answer.retry_after_ms > 0
            stage.runtimes[1].start_error = None
            await stage.until(lambda: stage.mesh.instance().runtimes[1].running)
            assert (await stage.ask("b1").answer).code is Code.OK

    run(scene())


def test_no_runtime_at_all_or_a_wrong_setting_stops_the_start() -> None:
    async def scene() -> None:
        for error, n_broken in ((RuntimeUnavailable("Away."), 2), (SettingsError("Wrong."), 1)):
            stage = Stage(offers=(FIRST, SECOND))
            for runtime in stage.runtimes[:n_broken]:
                runtime.start_error = error
            assert await raised(stage.start()) is error
            await stage.registrar.stop()

    run(scene())


def test_an_id_registered_anew_with_another_type_moves_to_the_other_runtime() -> None:
    async def scene() -> None:
        async with Stage(offers=(FIRST, SECOND)) as stage:
            await stage.register("m", Artefact(unload_s=0.2), "a")
            assert (await stage.ask("m").answer).code is Code.OK
            await stage.mesh.unregister("m")
            await stage.register("m", type="b")
            assert (await stage.ask("m").answer).code is Code.OK
            assert [sorted(runtime.loaded) for runtime in stage.runtimes] == [[], ["m"]]
            stage.mesh.check()

    run(scene())
