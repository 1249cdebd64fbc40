"""Canaries: a share of the requests of a vmodel goes to its target first, and decides whether the others follow."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from vmodel_scenes import Clients, copies, holds

from modelmesh.dataplane.protocol import Name, NameKind, Split, Usage
from modelmesh.errors import Code, InvalidInput, LoadFailed
from modelmesh.journal import Did
from modelmesh.mesh.views import VModelView
from modelmesh.registry.records import Canary
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage
from modelmesh.testing.theatre import Theatre

TENTH = Canary(share=0.1, for_ms=60_000, requests=50)
FAULTS = (Code.OK, Code.INTERNAL)


async def begun(theatre: Theatre, n: int, canary: Canary = TENTH, **target: Any) -> Artefact:
    """A vmodel v with n copies of m1, whose canary m2 is on trial. Returns what m2 is made of."""
    await theatre.register("m1", Artefact(load_s=0.2))
    artefact = await theatre.register("m2", Artefact(load_s=1.0, **target))
    await theatre["a"].mesh.set_vmodel("v", "m1")
    await copies(theatre, "m1", n)
    view = await theatre["b"].mesh.set_vmodel("v", "m2", canary=canary, sync=True)
    assert on_trial(view)
    assert (view.active, view.target, view.target_failed) == ("m1", "m2", False)
    for stage in theatre:
        await stage.registrar.wait_current()
    return artefact


def on_trial(view: VModelView) -> bool:
    return view.canary is not None and view.canary.since_wall_s > 0 and not view.target_failed


def ended(theatre: Theatre, did: Did) -> list[str]:
    """Who ended the trial that way."""
    return [id for id, stage in theatre.stages.items() if stage.told(did, "v")]


def test_a_good_canary_gets_its_share_and_then_the_rest() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await begun(theatre, 3)
            assert len(theatre.holders("m2")) == 1, "a tenth of three copies' requests"
            async with Clients(theatre, "v") as clients:
                await asyncio.sleep(30.0)
                share = clients.served["m2"] / clients.served.total()
                assert share == pytest.approx(0.1, abs=0.002)
                for stage in theatre:
                    view = stage.mesh.vmodel("v")
                    assert view.canary and view.canary.target and view.canary.active
                    seen = view.canary.target.requests, view.canary.active.requests
                    assert seen == pytest.approx((clients.served["m2"], clients.served["m1"]), rel=0.1)
                    assert "s are left" in view.canary.outlook
                await theatre.until(lambda: theatre["c"].mesh.vmodel("v").active == "m2", 40.0)
                assert len(theatre.holders("m2")) == 3, "it was brought to as many copies first"
                await asyncio.sleep(1.0)
                before = clients.served["m1"]
                await asyncio.sleep(1.0)
                assert clients.served["m1"] == before
            assert theatre["a"].mesh.vmodel("v") == VModelView("v", "", "m2", "m2", False, "")
            (keeper,) = ended(theatre, Did.PROMOTED)
            assert theatre[keeper].mesh.measures.counters["modelmesh_canaries_promoted"] == 1
            assert "no worse than chance explains" in theatre[keeper].told(Did.PROMOTED)[0].reason
            assert all(not len(stage.mesh.vmodel_calls.canaries) for stage in theatre)
            theatre.check()

    run(scene())


def test_a_bad_canary_is_given_up_and_nobody_else_notices() -> None:
    async def scene() -> None:
        async with Theatre(4) as theatre:
            await begun(theatre, 2, faulty=0.5)
            async with Clients(theatre, "v", allowed=FAULTS) as clients:
                await theatre.until(lambda: all(s.mesh.vmodel("v").target_failed for s in theatre), 20.0)
                await asyncio.sleep(0.5)
                tried = clients.served["m2"]
                assert tried < 100
                await asyncio.sleep(5.0)
                assert clients.served["m2"] == tried, "no more requests go there"
                assert len(theatre.holders("m1")) == 2
                assert holds(theatre, "m1") == holds(theatre, "m2") == [()] * 4
                for stage in theatre:
                    view = stage.mesh.vmodel("v")
                    assert (view.active, view.target, view.target_failed) == ("m1", "m2", True)
                    assert "requests failed" in view.reason
                    assert view.canary and (view.canary.target, view.canary.outlook) == (None, "")
            loads = theatre.loads("m2")
            async with Clients(theatre, "v", every_s=1.0):
                await asyncio.sleep(1200.0)
            assert theatre.loads("m2") == loads, "it is not tried again by itself"
            assert theatre["d"].mesh.vmodel("v").target_failed
            (keeper,) = ended(theatre, Did.ROLLED_BACK)
            (entry,) = theatre[keeper].told(Did.ROLLED_BACK)
            assert entry.numbers["canary_errors"] > 4
            assert theatre[keeper].mesh.measures.counters["modelmesh_canaries_rolled_back"] == 1
            theatre.check()

    run(scene())


def test_what_was_given_up_can_be_asked_for_again() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            artefact = await begun(theatre, 1, faulty=1.0)
            async with Clients(theatre, "v", allowed=FAULTS) as clients:
                await theatre.until(lambda: theatre["a"].mesh.vmodel("v").target_failed)
                mesh = theatre["b"].mesh
                await theatre["b"].registrar.wait_current()
                view = await mesh.set_vmodel("v", "m2")
                assert view.target_failed, "asked for as it is, nothing changes: callers repeat themselves"
                artefact.faulty = 0.0
                view = await mesh.set_vmodel("v", "m2", canary=TENTH, sync=True)
                assert on_trial(view)
                assert view.canary and view.canary.target and view.canary.target.requests == 0
                await theatre.until(lambda: mesh.vmodel("v").active == "m2", 80.0)
                await mesh.set_vmodel("v", "m1", canary=TENTH, sync=True)
                view = await mesh.set_vmodel("v", "m1", force=True)
                assert (view.active, view.target) == ("m1", "m1")
                await asyncio.sleep(1.0)
                before = clients.served["m2"]
                await asyncio.sleep(1.0)
                assert clients.served["m2"] == before
            theatre.check()

    run(scene())


@pytest.mark.parametrize("dies", ["keeper", "canary"])
def test_a_death_in_the_middle_ends_no_trial(dies: str) -> None:
    """Of the instance that would end it, and of the only one that has the canary."""

    async def scene() -> None:
        async with Theatre(5) as theatre:
            await begun(theatre, 3)
            async with Clients(theatre, "v") as clients:
                await asyncio.sleep(20.0)
                holder = theatre.holders("m2")[0]
                keeper = next(
                    id
                    for id, s in theatre.stages.items()
                    if s.mesh._others.provider.keeps("v")  # type: ignore[union-attr]
                )
                await theatre.crash(keeper if dies == "keeper" else holder)
                clients.bad.clear()  # a request or two in flight there
                await asyncio.sleep(15.0)
                assert theatre.holders("m2"), "it was loaded again"
                rest = next(iter(theatre))
                view = rest.mesh.vmodel("v")
                assert on_trial(view) and view.canary and view.canary.target
                seen = view.canary.target.requests
                assert seen == pytest.approx(clients.served["m2"], rel=0.15), "also what the dead one served"
                await theatre.until(lambda: rest.mesh.vmodel("v").active == "m2", 60.0)
            assert len(ended(theatre, Did.PROMOTED)) == 1
            theatre.check()

    run(scene())


def test_a_canary_that_is_lost_and_cannot_be_loaded_again_has_failed() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            artefact = await begun(theatre, 2)
            async with Clients(theatre, "v") as clients:
                artefact.error = LoadFailed("The file is torn.", code=Code.INVALID_ARGUMENT)
                (holder,) = theatre.holders("m2")
                for target in theatre[holder].runtime.targets:
                    theatre[holder].runtime.crash_target(target)
                await theatre.until(lambda: theatre["a"].mesh.vmodel("v").target_failed, 20.0)
                assert "The file is torn." in theatre["a"].mesh.vmodel("v").reason
                await asyncio.sleep(5.0)
                assert theatre["a"].mesh.vmodel("v").active == "m1"
                assert clients.served["m1"]
                clients.bad = [bad for bad in clients.bad if "m1" not in bad]
            assert ended(theatre, Did.ROLLED_BACK)

    run(scene())


def test_a_trial_goes_on_by_other_terms() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await begun(theatre, 1)
            async with Clients(theatre, "v") as clients:
                await asyncio.sleep(10.0)
                before, total = clients.served["m2"], clients.served.total()
                half = replace(TENTH, share=0.5)
                view = await theatre["b"].mesh.set_vmodel("v", "m2", canary=half)
                assert view.canary and view.canary.target
                assert view.canary.target.requests > 0.8 * before
                await asyncio.sleep(10.0)
                share = (clients.served["m2"] - before) / (clients.served.total() - total)
                assert share == pytest.approx(0.5, abs=0.02)
                await theatre.until(lambda: theatre["a"].mesh.vmodel("v").active == "m2", 45.0)
            theatre.check()

    run(scene())


def test_a_target_that_fails_before_its_trial_is_tried_again_and_then_has_it() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await theatre.register("m1")
            artefact = await theatre.register("m2")
            artefact.error = LoadFailed("The storage is away.", code=Code.UNAVAILABLE)
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 1)
            view = await theatre["a"].mesh.set_vmodel("v", "m2", canary=TENTH, sync=True)
            assert view.target_failed and not on_trial(view)
            artefact.error = None
            await theatre.until(lambda: on_trial(theatre["b"].mesh.vmodel("v")), 60.0)
            theatre.check()

    run(scene())


def test_a_target_that_is_on_its_way_can_still_be_tried_out() -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await theatre.register("m1")
            await theatre.register("m2", Artefact(load_s=2.0))
            await theatre["a"].mesh.set_vmodel("v", "m1")
            await copies(theatre, "m1", 2)
            async with Clients(theatre, "v") as clients:
                await theatre["a"].mesh.set_vmodel("v", "m2")
                await asyncio.sleep(0.5)
                view = await theatre["b"].mesh.set_vmodel("v", "m2", canary=TENTH, sync=True)
                assert on_trial(view) and view.active == "m1"
                await asyncio.sleep(10.0)
                assert theatre["c"].mesh.vmodel("v").active == "m1"
                assert clients.served["m2"] < clients.served["m1"]
            theatre.check()

    run(scene())


@pytest.mark.parametrize("deleted", [True, False])
def test_a_trial_ends_with_its_vmodel_and_with_another_target(deleted: bool) -> None:
    async def scene() -> None:
        async with Theatre(3) as theatre:
            await begun(theatre, 2)
            async with Clients(theatre, "v", allowed=(Code.OK, Code.NOT_FOUND)) as clients:
                await asyncio.sleep(5.0)
                if deleted:
                    await theatre["a"].mesh.delete_vmodel("v")
                else:
                    view = await theatre["a"].mesh.set_vmodel("v", "m1")
                    assert view == VModelView("v", "", "m1", "m1", False, "")
                await asyncio.sleep(0.5)
                before = clients.served["m2"]
                await asyncio.sleep(5.0)
                assert clients.served["m2"] == before
                assert holds(theatre, "m1") == holds(theatre, "m2") == [()] * 3
                assert not any(len(stage.mesh.vmodel_calls.canaries) for stage in theatre)
            theatre.check()

    run(scene())


def test_a_vmodel_nobody_asks_for_moves_in_the_end() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await begun(theatre, 1)
            await asyncio.sleep(150.0)
            assert on_trial(theatre["a"].mesh.vmodel("v"))
            await asyncio.sleep(60.0)
            assert theatre["a"].mesh.vmodel("v").active == "m2"
            (keeper,) = ended(theatre, Did.PROMOTED)
            assert "They are few" in theatre[keeper].told(Did.PROMOTED)[0].reason

    run(scene())


def test_a_store_that_is_away_delays_the_end() -> None:
    async def scene() -> None:
        async with Theatre(2) as theatre:
            await begun(theatre, 1, faulty=1.0)
            async with Clients(theatre, "v", allowed=FAULTS):
                theatre.store.outage = "The store is away."
                await asyncio.sleep(20.0)
                assert on_trial(theatre["a"].mesh.vmodel("v"))
                theatre.store.outage = ""
                await theatre.until(lambda: theatre["a"].mesh.vmodel("v").target_failed, 10.0)
            theatre.check()

    run(scene())


def test_an_instance_alone_has_canaries_too() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m1")
            await stage.register("m2", Artefact(faulty=0.5))
            assert (await stage.mesh.set_vmodel("v", "m1", canary=TENTH)).canary is None, "it is new"
            await stage.ask("v").answer
            await stage.mesh.set_vmodel("v", "m2", canary=TENTH, sync=True)
            models = [(await stage.ask("v").answer).model for _ in range(100)]
            assert models.count("m2") == 10
            by_id = [(await stage.ask("m1", kind=NameKind.MODEL_FIRST).answer).model for _ in range(20)]
            assert set(by_id) == {"m1"}, "only the vmodel's requests are shared"
            while not stage.mesh.vmodel("v").target_failed:
                await stage.ask("v").answer
                await asyncio.sleep(0.02)
            assert {(await stage.ask("v").answer).model for _ in range(50)} == {"m1"}

    run(scene())


def test_a_cold_active_model_is_no_reason_to_skip_the_trial() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m1")
            await stage.register("m2")
            await stage.mesh.set_vmodel("v", "m1")
            assert on_trial(await stage.mesh.set_vmodel("v", "m2", canary=TENTH, sync=True))
            assert {(await stage.ask("v").answer).model for _ in range(30)} == {"m1", "m2"}

    run(scene())


def test_one_that_takes_longer_is_given_up_where_that_counts() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m1")
            await stage.register("m2")
            await stage.mesh.set_vmodel("v", "m1")
            await stage.mesh.set_vmodel("v", "m2", canary=replace(TENTH, slower_max=1.5), sync=True)
            canaries = stage.mesh.vmodel_calls.canaries
            canaries.served(Usage("m1", 1, 900, 0, 0, 900_000, 0))
            canaries.served(Usage("m2", 2, 100, 0, 0, 200_000, 0))
            await asyncio.sleep(59.0)
            assert on_trial(stage.mesh.vmodel("v"))
            await asyncio.sleep(3.0)
            assert "2.00 times as long" in stage.mesh.vmodel("v").reason

    run(scene())


@pytest.mark.parametrize(
    ("canary", "says"),
    [
        (replace(TENTH, share=0.0), "above 0 and at most 1"),
        (replace(TENTH, share=1.5), "above 0 and at most 1"),
        (replace(TENTH, for_ms=0, requests=0), "for some time, or for some requests"),
        (replace(TENTH, slower_max=0.5), "1 time as long"),
    ],
)
def test_senseless_canaries_are_refused(canary: Canary, says: str) -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m1")
            await stage.register("m2")
            await stage.mesh.set_vmodel("v", "m1")
            with pytest.raises(InvalidInput, match=says):
                await stage.mesh.set_vmodel("v", "m2", canary=canary)
            with pytest.raises(InvalidInput, match="not both"):
                await stage.mesh.set_vmodel("v", "m2", canary=TENTH, force=True)
            assert stage.mesh.vmodel("v").target == "m1"

    run(scene())


def test_a_trial_is_taken_up_after_a_restart() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            await stage.register("m1")
            await stage.register("m2")
            await stage.mesh.set_vmodel("v", "m1")
            await stage.ask("v").answer
            await stage.mesh.set_vmodel("v", "m2", canary=TENTH, sync=True)
            again = Stage(store=stage.store, artefacts=stage.artefacts)
            await stage.stop()
            async with again:
                assert on_trial(again.mesh.vmodel("v"))
                await asyncio.sleep(2.0)
                assert again.mesh.copy("m2") is not None, "what is on trial is loaded"
                await again.ask("v").answer
                name = next(iter(again.dataplane.names))
                assert again.dataplane.names[name] == Split("m1", "m2", 0.1)
                assert name == Name(NameKind.VMODEL_FIRST, "v")

    run(scene())
