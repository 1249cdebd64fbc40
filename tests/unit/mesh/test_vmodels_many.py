"""Vmodels among several instances: transitions that no client notices, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from vmodel_scenes import Clients, copies, holds, keeper_of

from modelmesh.errors import Code, LoadFailed, ModelMeshError
from modelmesh.journal import Did
from modelmesh.mesh.cache.targets import VMODEL_ACTIVE, VMODEL_TARGET
from modelmesh.mesh.peering.bringing import LATE_S
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.theatre import Theatre


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_target_has_as_many_copies_before_it_takes_over(n: int) -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=2.0), max_copies=n)
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", n)
            async with Clients(theatre, "v") as clients:
                await theatre["c"].mesh.set_vmodel("v", "m2")
                await asyncio.sleep(1.0)
                assert holds(theatre, "m1") == [(VMODEL_ACTIVE,)] * 4
                assert holds(theatre, "m2") == [(VMODEL_TARGET,)] * 4
                await theatre.until(lambda: len(theatre.holders("m2")) == n)
                assert "m2" not in clients.served
                await theatre.until(lambda: theatre["d"].mesh.vmodel("v").active == "m2")
                assert len(theatre.holders("m2")) == n
                await asyncio.sleep(1.0)
                assert clients.served["m2"]
                assert holds(theatre, "m1") == [()] * 4
                assert len([why for why in holds(theatre, "m2") if why == (VMODEL_TARGET,)]) == n
                await asyncio.sleep(10.0)
                assert holds(theatre, "m2") == [()] * 4
            assert theatre.loads("m2") == n
            (switched,) = [entry for stage in theatre for entry in stage.told(Did.SWITCHED, "v")]
            assert ("copies" in switched.reason) == (n > 1)
            theatre.check()

    run(scene())


def test_copies_that_do_not_fit_beside_the_active_ones_are_left_out() -> None:
    async def scene() -> None:
        async with Theatre(4, budget_bytes=10_000) as theatre:
            await theatre.register("m1", Artefact(size_bytes=6_000))
            await theatre.register("m2", Artefact(size_bytes=6_000, load_s=0.5))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 3)
            (free,) = set(theatre.ids) - set(theatre.holders("m1"))
            async with Clients(theatre, "v"):
                view = await theatre["b"].mesh.set_vmodel("v", "m2", sync=True)
                assert view.active == "m2"
                assert theatre.holders("m2") == [free]
                assert len(theatre.holders("m1")) == 3
            theatre.check()

    run(scene())


def test_where_nothing_fits_beside_the_active_model_it_makes_room_for_its_target() -> None:
    async def scene() -> None:
        async with Theatre(2, budget_bytes=10_000) as theatre:
            await theatre.register("m1", Artefact(size_bytes=6_000))
            await theatre.register("m2", Artefact(size_bytes=6_000))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 2)
            view = await theatre["b"].mesh.set_vmodel("v", "m2", sync=True)
            assert view.active == "m2"
            assert (await theatre["a"].ask("v").answer).model == "m2"
            theatre.check()

    run(scene())


def test_an_instance_that_is_slow_to_load_does_not_keep_the_switch_from_coming() -> None:
    async def scene() -> None:
        async with Theatre(3, load_timeout_s=500.0) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=1.0))
            slow = theatre["b"].runtime
            artefact_of = slow._artefact_of
            slow._artefact_of = lambda spec: Artefact(load_s=400.0) if spec.id == "m2" else artefact_of(spec)
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 3)
            began_s = asyncio.get_running_loop().time()
            async with Clients(theatre, "v"):
                await theatre["a"].mesh.set_vmodel("v", "m2", sync=True)
            took_s = asyncio.get_running_loop().time() - began_s
            assert LATE_S < took_s < LATE_S + 5.0
            assert theatre["c"].mesh.vmodel("v").active == "m2"
            assert sorted(theatre.holders("m2")) == ["a", "c"]
            (switched,) = [entry for stage in theatre for entry in stage.told(Did.SWITCHED, "v")]
            assert "2 of the 3 copies" in switched.reason

    run(scene())


def test_a_place_that_fails_is_made_up_for_by_another() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=0.5))
            bad = theatre["b"].runtime
            artefact_of = bad._artefact_of
            error = LoadFailed("Its disk is full.", code=Code.UNAVAILABLE)
            bad._artefact_of = lambda spec: Artefact(error=error) if spec.id == "m2" else artefact_of(spec)
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 3)
            async with Clients(theatre, "v"):
                view = await theatre["a"].mesh.set_vmodel("v", "m2", sync=True)
            assert (view.active, view.target_failed) == ("m2", False)
            assert sorted(theatre.holders("m2")) == ["a", "c", "d"]
            theatre.check()

    run(scene())


def test_the_next_keeper_goes_on_when_one_dies_in_the_middle() -> None:
    async def scene() -> None:
        async with Theatre(6, budget_bytes=3_000) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=3.0))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 3)
            await theatre["a"].mesh.set_vmodel("v", "m2")
            await theatre.settled()
            keeper = keeper_of(theatre, "v")
            begun = {id for id in theatre.ids if theatre[id].mesh.copy("m2") is not None} - {keeper}
            for id in begun:  # these would not be chosen now
                await theatre.register(f"x{id}", Artefact(load_s=0.1))
                await theatre[id].mesh._asks.load(f"x{id}", "of a test", False, 5.0)
                await theatre[id].ask(f"x{id}").answer
            goal = len(set(theatre.holders("m1")) - {keeper})
            async with Clients(theatre, "v") as clients:
                await theatre.crash(keeper)
                rest = next(iter(theatre))
                await theatre.until(lambda: rest.mesh.vmodel("v").active == "m2")
                await asyncio.sleep(0.5)
                assert clients.served["m2"]
            assert len(theatre.holders("m2")) >= goal
            assert set(theatre.holders("m2")) == begun, "loads under way were joined"
            theatre.check()

    run(scene())


def test_a_failed_target_leaves_all_as_it_is_and_every_instance_can_say_why() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("m1")
            artefact = await theatre.register("m2", Artefact(load_s=0.2))
            artefact.error = LoadFailed("The file is torn.", code=Code.UNAVAILABLE)
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 2)
            async with Clients(theatre, "v") as clients:
                view = await theatre["a"].mesh.set_vmodel("v", "m2", sync=True)
                assert (view.active, view.target_failed) == ("m1", True)
                await asyncio.sleep(1.0)
                assert theatre.loads("m2") == 3, "once in each of three places"
                for stage in theatre:
                    assert "The file is torn." in stage.mesh.vmodel("v").reason
                    assert "torn" in stage.mesh.vmodels()[0].reason
                assert set(clients.served) == {"m1"}
                keeper = next(id for id in theatre.ids if theatre[id].told(Did.LOAD_FAILED, "v"))
                if len(theatre.holders("m1")) > 1 or keeper not in theatre.holders("m1"):
                    await theatre.crash(keeper)
                    await theatre.settled()
                rest = next(iter(theatre))
                assert "torn" in rest.mesh.vmodel("v").reason, "the reason outlives its keeper"
                artefact.error = None
                await theatre.until(lambda: rest.mesh.vmodel("v").active == "m2", 120.0)
                assert rest.mesh.vmodel("v").reason == ""
            theatre.check()

    run(scene())


def test_targets_in_rapid_succession_end_with_the_last() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            for index in range(1, 6):
                await theatre.register(f"m{index}", Artefact(load_s=1.0))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 2)
            async with Clients(theatre, "v") as clients:
                for index in range(2, 6):
                    await theatre["abc"[index % 3]].mesh.set_vmodel("v", f"m{index}")
                    await asyncio.sleep(0.3)
                await theatre.until(lambda: theatre["b"].mesh.vmodel("v").active == "m5")
                await asyncio.sleep(8.0)
                assert set(clients.served) == {"m1", "m5"}
            assert len(theatre.holders("m5")) == 2
            for index in range(1, 6):
                assert holds(theatre, f"m{index}") == [()] * 3
            theatre.check()

    run(scene())


def test_back_to_the_active_model_in_the_middle_and_after() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=1.0))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 3)
            async with Clients(theatre, "v") as clients:
                await theatre["a"].mesh.set_vmodel("v", "m2")
                await asyncio.sleep(0.5)
                view = await theatre["b"].mesh.set_vmodel("v", "m1", sync=True)
                assert (view.active, view.target) == ("m1", "m1")
                await asyncio.sleep(3.0)
                assert set(clients.served) == {"m1"}
                assert holds(theatre, "m2") == [()] * 3
                await theatre["b"].mesh.set_vmodel("v", "m2", sync=True)
                await theatre["c"].mesh.set_vmodel("v", "m1", sync=True)
                assert theatre.loads("m1") == 3, "its copies were there still"
                await asyncio.sleep(0.5)
            theatre.check()

    run(scene())


def test_a_vmodel_deleted_in_the_middle_leaves_nothing_behind() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=2.0))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 2)
            await theatre["a"].mesh.set_vmodel("v", "m2")
            await theatre.settled()
            await theatre["b"].mesh.delete_vmodel("v")
            await theatre.settled()
            assert not any(stage.mesh.vmodel_calls.transitions.moving("v") for stage in theatre)
            assert holds(theatre, "m1") == holds(theatre, "m2") == [()] * 3
            await theatre["c"].mesh.unregister("m2")
            await asyncio.sleep(5.0)
            assert theatre.holders("m2") == []
            theatre.check()

    run(scene())


def test_no_other_load_takes_the_room_of_a_transition() -> None:
    """While the last copy takes its time, memory is full of models that may not be evicted, and more are asked for."""

    async def scene() -> None:
        async with Theatre(3, budget_bytes=6_000, load_timeout_s=100.0) as theatre:
            await theatre.register("m1", Artefact(size_bytes=1_500))
            await theatre.register("m2", Artefact(size_bytes=1_500, load_s=0.2))
            for index in range(7):
                await theatre.register(f"x{index}", Artefact(size_bytes=1_400))
            slow = theatre["c"].runtime
            artefact_of = slow._artefact_of
            slow._artefact_of = lambda spec: (
                Artefact(size_bytes=1_500, load_s=40.0) if spec.id == "m2" else artefact_of(spec)
            )
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 3)
            async with Clients(theatre, "v"):
                await theatre["a"].mesh.set_vmodel("v", "m2")
                await theatre.until(lambda: len(theatre.holders("m2")) == 2)
                for index in range(7):
                    with suppress(ModelMeshError):
                        await theatre["abc"[index % 3]].mesh.load(f"x{index}", timeout_s=5.0)
                assert sum(bool(theatre.holders(f"x{index}")) for index in range(7)) == 6
                assert len(theatre.holders("m1")) == 3
                assert len(theatre.holders("m2")) == 2
                await theatre.until(lambda: theatre["b"].mesh.vmodel("v").active == "m2", 60.0)
                assert len(theatre.holders("m2")) == 3
            theatre.check()

    run(scene())


def test_an_instance_that_leaves_in_the_middle_is_no_reason_to_fail() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=2.0))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 3)
            await theatre["a"].mesh.set_vmodel("v", "m2")
            await theatre.settled()
            keeper = keeper_of(theatre, "v")
            async with Clients(theatre, "v"):
                stage = theatre.stages.pop(keeper)
                await stage.stop(10.0)
                rest = next(iter(theatre))
                await theatre.until(lambda: rest.mesh.vmodel("v").active == "m2")
                await asyncio.sleep(1.0)
            assert rest.mesh.vmodel("v").reason == ""
            theatre.check()

    run(scene())
