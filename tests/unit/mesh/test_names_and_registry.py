"""What happens when names, models and vmodels come, go and change while requests use them."""

from __future__ import annotations

import asyncio
import random

from modelmesh.dataplane.protocol import Fault, Name, NameKind, Route
from modelmesh.errors import Code, LoadFailed, ModelNotFound, RuntimeUnavailable
from modelmesh.journal import Did
from modelmesh.mesh.control import Query, Registration
from modelmesh.mesh.names import Names
from modelmesh.mesh.tuning import Tuning
from modelmesh.mesh.views import State
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage, raised


def test_unknown_names_share_one_read_of_the_store_and_are_remembered_a_second() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            reads = 0
            revision = stage.store.revision

            async def counted() -> object:
                nonlocal reads
                reads += 1
                await asyncio.sleep(0.05)
                return await revision()

            stage.store.revision = counted  # type: ignore[assignment,method-assign]
            requests = [stage.ask(f"unknown{index % 10}") for index in range(50)]
            for request in requests:
                answer = await request.answer
                assert answer.code is Code.NOT_FOUND and answer.message.startswith("model not found: unknown")
            assert reads == 1
            await stage.ask("unknown1").answer
            assert reads == 1
            await asyncio.sleep(1.1)
            await stage.ask("unknown1").answer
            assert reads == 2

    run(scene())


def test_a_cold_model_is_loaded_when_its_name_is_asked_for_unless_it_just_failed() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("cold")
            await stage.register("broken", Artefact(error=LoadFailed("It cannot be read.")))
            assert (await stage.ask("broken").answer).code is not Code.OK
            await stage.until(lambda: stage.mesh.model("broken").state is State.FAILED)
            events = [
                Fault(Name(NameKind.MODEL_FIRST, model), "", 1, 5000, 5000) for model in ("cold", "broken")
            ]
            stage.mesh.handle_events(events)
            assert [stage.mesh.model(model).state for model in ("cold", "broken")] == [
                State.QUEUED,
                State.FAILED,
            ]
            await stage.until(lambda: stage.mesh.model("cold").state is State.LOADED)

    run(scene())


def test_an_unknown_name_while_the_store_is_away_is_unavailable_not_unknown() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            stage.store.outage = "The store is away."
            answer = await stage.ask("later").answer
            assert answer.code is Code.UNAVAILABLE and answer.retry_after_ms == 1000
            assert "the store cannot be asked" in answer.message
            stage.store.outage = ""
            await stage.register("later")
            assert (await stage.ask("later").answer).code is Code.OK

    run(scene())


def test_loaded_and_cold_models_are_served_while_the_store_is_away() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("warm")
            await stage.register("cold")
            await stage.ask("warm").answer
            stage.store.outage = "The store is away."
            for model in ("warm", "cold"):
                assert (await stage.ask(model).answer).code is Code.OK
            stage.store.outage = ""

    run(scene())


def test_registering_ends_the_refusal_of_a_name_at_once() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            assert (await stage.ask("new").answer).code is Code.NOT_FOUND
            await stage.register("new")
            assert (await stage.ask("new").answer).code is Code.OK

    run(scene())


def test_a_vmodel_moves_without_a_failed_or_cold_request() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("one")
            await stage.register("two", Artefact(load_s=1.0))
            await stage.mesh.set_vmodel("v", "one")
            await stage.ask("v", kind=NameKind.VMODEL).answer
            setting = asyncio.ensure_future(stage.mesh.set_vmodel("v", "two", sync=True))
            served = []
            while not setting.done():
                begun_s = stage.clock.monotonic_s()
                answer = await stage.ask("v", kind=NameKind.VMODEL).answer
                assert answer.code is Code.OK and stage.clock.monotonic_s() - begun_s < 0.01
                served.append(answer.model)
                await asyncio.sleep(0.1)
            assert (await setting).active == "two"
            assert (await stage.ask("v", kind=NameKind.VMODEL).answer).model == "two"
            assert set(served) == {"one"} or served[-1] == "two"

    run(scene())


def test_the_target_inherits_the_use_of_the_active_model() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("one")
            await stage.register("two")
            await stage.mesh.set_vmodel("v", "one")
            for _ in range(5):
                await stage.ask("v").answer
                await asyncio.sleep(1.0)
            before = stage.mesh.model("one").requests_per_s
            await stage.mesh.set_vmodel("v", "two", sync=True)
            after = stage.mesh.model("two").requests_per_s
            assert before > 0 and abs(after - before) < 0.2 * before

    run(scene())


def test_parked_requests_follow_a_vmodel_that_moves_meanwhile() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("slow", Artefact(load_s=5.0))
            await stage.register("fast")
            await stage.mesh.set_vmodel("v", "slow")
            parked = stage.ask("v", 30.0)
            await asyncio.sleep(0.5)
            await stage.mesh.set_vmodel("v", "fast", force=True)
            answer = await parked.answer
            assert (answer.code, answer.model) == (Code.OK, "fast") and stage.clock.monotonic_s() < 1.0

    run(scene())


def test_a_deleted_vmodel_is_forgotten_and_its_parked_requests_are_told() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m", Artefact(load_s=2.0))
            await stage.mesh.set_vmodel("v", "m")
            parked = stage.ask("v", 30.0, kind=NameKind.VMODEL)
            await asyncio.sleep(0.1)
            await stage.mesh.delete_vmodel("v")
            answer = await parked.answer
            assert answer.code is Code.NOT_FOUND
            assert answer.message == "vmodel not found: v; see what is registered with: modelmesh vmodel list"

    run(scene())


def test_unregistering_unloads_after_the_requests_and_stops_a_running_load() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("busy")
            await stage.register("loading", Artefact(load_s=9.0))
            await stage.ask("busy").answer
            running = stage.ask("busy", 30.0, 2.0)
            waiting = stage.ask("loading", 30.0)
            await asyncio.sleep(0.1)
            await stage.mesh.unregister("busy")
            await stage.mesh.unregister("loading")
            answer = await waiting.answer
            assert answer.code is Code.NOT_FOUND and stage.clock.monotonic_s() < 0.2
            assert (await stage.ask("busy").answer).code is Code.NOT_FOUND
            assert (await running.answer).code is Code.OK
            await stage.until(lambda: not stage.runtime.loaded and not stage.runtime.busy)
            assert not stage.runtime.residue and not stage.runtime.violations
            assert stage.mesh.instance().ledger.free_bytes == 100_000

    run(scene())


def test_another_artefact_under_the_same_id_replaces_the_copy() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m", Artefact(size_bytes=100))
            await stage.ask("m").answer
            await stage.mesh.unregister("m")
            await stage.register("m", Artefact(size_bytes=200))
            assert (await stage.ask("m").answer).code is Code.OK
            assert stage.runtime.loaded["m"][0].size_bytes == 200

    run(scene())


def test_facts_learned_of_one_artefact_are_not_written_to_another_under_its_id() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m", Artefact(size_bytes=100))
            await stage.ask("m").answer
            await stage.mesh.unregister("m")
            await stage.register("m", Artefact(size_bytes=90_000))
            await asyncio.sleep(5.0)
            record = stage.mirror.model("m")
            assert record is not None and record.size_bytes == 0

    run(scene())


def test_a_load_cancelled_before_it_began_leaves_nothing() -> None:
    async def scene() -> None:
        async with Stage(max_loads=1) as stage:
            await stage.register("first", Artefact(load_s=1.0))
            await stage.register("second")
            first, second = stage.ask("first"), stage.ask("second")
            await stage.until(lambda: stage.runtime.busy != {})
            await stage.mesh.unregister("second")
            assert (await second.answer).code is Code.NOT_FOUND
            assert (await first.answer).code is Code.OK
            assert stage.runtime.loads == ["first"] and stage.mesh.copy("second") is None

    run(scene())


def test_names_beyond_the_bound_are_forgotten_and_asked_for_again() -> None:
    async def scene() -> None:
        async with Stage(tuning=Tuning(names_max=3)) as stage:
            for index in range(6):
                await stage.register(f"m{index}")
            for _ in range(2):
                for index in range(6):
                    assert (await stage.ask(f"m{index}").answer).code is Code.OK
                    assert len(stage.dataplane.names) <= 3

    run(scene())


def test_pages_of_models_by_state() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            for index in range(7):
                await stage.register(f"m{index}")
            await stage.register("other")
            for index in (1, 3, 5):
                await stage.mesh.load(f"m{index}")
            page = await stage.mesh.models(Query(prefix="m", limit=3))
            assert [view.id for view in page.models] == ["m0", "m1", "m2"]
            assert (page.next_after, page.total) == ("m2", 7)
            last = await stage.mesh.models(Query(prefix="m", after="m5", limit=3))
            assert [view.id for view in last.models] == ["m6"] and last.next_after == ""
            loaded = await stage.mesh.models(Query(state=State.LOADED, limit=2))
            assert [view.id for view in loaded.models] == ["m1", "m3"] and loaded.total == 3
            rest = await stage.mesh.models(Query(state=State.LOADED, after=loaded.next_after))
            assert [view.id for view in rest.models] == ["m5"]
            cold = await stage.mesh.models(Query(prefix="m", state=State.COLD, limit=2))
            assert [view.id for view in cold.models] == ["m0", "m2"] and cold.total == 4
            assert (await stage.mesh.models(Query(state=State.FAILED))).total == 0
            assert isinstance(await raised(stage.mesh.load("nobody")), ModelNotFound)

    run(scene())


def test_registering_many_answers_each() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            answers = await stage.mesh.register_many(
                [Registration("a", "fake"), Registration("", "fake"), Registration("a", "other")]
            )
            assert answers[0] is None and answers[1] is not None and answers[2] is not None
            assert len(stage.told(Did.REGISTERED)) == 1

    run(scene())


def test_stopping_lets_requests_end_and_calls_fail_honestly() -> None:
    async def scene() -> None:
        stage = Stage()
        await stage.start()
        await stage.register("m")
        await stage.register("slow", Artefact(load_s=9.0))
        await stage.ask("m").answer
        running = stage.ask("m", 30.0, 1.0)
        loading = asyncio.ensure_future(raised(stage.mesh.load("slow")))
        await asyncio.sleep(0.1)
        stopping = asyncio.ensure_future(stage.stop(grace_s=5.0))
        await asyncio.sleep(0.1)
        assert stage.mesh.instance().draining and not stage.mesh.instance().ready
        assert (await running.answer).code is Code.OK
        await stopping
        assert isinstance(await loading, RuntimeUnavailable)
        assert stage.clock.monotonic_s() < 2.0
        await stage.mesh.stop(1.0)

    run(scene())


def test_a_route_waits_for_the_target_it_names() -> None:
    """A load may end before the runtime's word of a new server was heard."""

    async def scene() -> None:
        async with Stage(targets=1) as stage:
            seen: list[Route] = []
            publish = stage.dataplane.publish

            def watched(routes: list[Route]) -> None:
                seen.extend(routes)
                publish(routes)

            stage.dataplane.publish = watched  # type: ignore[assignment,method-assign]
            await stage.register("m", Artefact(load_s=0.01))
            waiting = stage.ask("m")
            await stage.until(lambda: stage.runtime.busy != {})
            events, stage.runtime._events = stage.runtime._events, []
            assert not events
            target = 77
            stage.runtime.targets[:] = [target]
            await stage.until(lambda: stage.mesh.model("m").state is State.LOADED)
            assert all(not route.replicas for route in seen)
            from modelmesh.dataplane.protocol import Target
            from modelmesh.runtime.protocol import TargetsChanged

            stage.runtime.emit(TargetsChanged((Target(target, "unix:/fake/77"),), ()))
            assert (await waiting.answer).code is Code.OK and not stage.dataplane.violations

    run(scene())


def test_resolving_agrees_with_the_meaning_of_kinds() -> None:
    """Random registries: the resolver against the rules written as a search order."""

    async def scene() -> None:
        rng = random.Random(3)
        async with Stage() as stage:
            for id in ("a", "b", "c"):
                await stage.register(id)
            versions: list[bool] = []
            names = Names(
                stage.mirror, stage.dataplane, stage.mesh._refusals, Tuning(), lambda: bool(versions)
            )
            for _ in range(60):
                vmodel = rng.choice(("a", "x", "a:1", "x:1"))
                if rng.random() < 0.3:
                    await stage.mesh.delete_vmodel(vmodel)
                else:
                    await stage.mesh.set_vmodel(vmodel, rng.choice("abc"), force=True)
                for name in ("a", "x", "z"):
                    for kind in NameKind:
                        for version in ("", "1"):
                            spaces = {"MODEL": "m", "VMODEL": "v", "MODEL_FIRST": "mv", "VMODEL_FIRST": "vm"}[
                                kind.name
                            ]
                            found = None
                            for space, id in [("v", f"{name}:1")] * (version == "1" and "v" in spaces) + [
                                (space, name) for space in spaces
                            ]:
                                record = stage.mirror.vmodel(id) if space == "v" else None
                                known = stage.mirror.model(id) is not None if space == "m" else False
                                found = found or (record.active if record else id if known else None)
                            asked = Name(kind, name, version)
                            versions.append(True)
                            assert names.resolve(asked) == found
                            versions.clear()
                            versioned = stage.mirror.vmodel(f"{name}:1") if "v" in spaces else None
                            if version:
                                found = versioned.active if versioned else None
                            assert names.resolve(asked) == found

    run(scene())
