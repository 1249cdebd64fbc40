"""What instances do not know yet, because the store told them late: found by the stories of `testing.many`."""

from __future__ import annotations

import asyncio

import pytest

from modelmesh.errors import Code, LoadFailed
from modelmesh.mesh.control import Registration
from modelmesh.registry.records import ModelRecord
from modelmesh.testing.loop import run
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage
from modelmesh.testing.theatre import Theatre

LATE_S = (0.6, 0.6)


@pytest.mark.parametrize("cut", [False, True])
def test_an_instance_that_has_not_heard_of_a_model_does_not_call_it_unknown(cut: bool) -> None:
    """Its line to the store is slow, or cut: then another keeper is asked."""

    async def scene() -> None:
        async with Theatre(4) as theatre:
            entry = theatre["a"]
            for id in "bcd"[: 1 if cut else 3]:
                theatre.lines[id].late_s = LATE_S
                if cut:
                    theatre.cut_store(id)
            for index in range(12):
                theatre.artefacts[f"p{index}"] = Artefact()
                await entry.mesh.register(Registration(f"m{index}", "fake", f"p{index}"))
                assert (await entry.ask(f"m{index}").answer).code is Code.OK
            theatre.check()

    run(scene())


def test_a_failure_of_what_was_registered_before_says_nothing_of_what_is_now() -> None:
    """Unregistering and registering again arrive as one change."""

    async def scene() -> None:
        async with Theatre(2) as theatre:
            bad = Artefact(error=LoadFailed("It is broken.", code=Code.INVALID_ARGUMENT))
            await theatre.register("iris", bad)
            assert (await theatre["a"].ask("iris").answer).code is Code.INVALID_ARGUMENT
            await theatre.settled()
            theatre.artefacts["good"] = Artefact()
            good = ModelRecord("fake", "good")
            await theatre["b"].registrar.transact(lambda draft: draft.put_model("iris", good))
            await asyncio.sleep(2.0)
            assert (await theatre["a"].ask("iris").answer).code is Code.OK

    run(scene())


def test_a_copy_whose_server_died_after_losing_it_is_loaded_again_when_asked_for() -> None:
    async def scene() -> None:
        async with Stage(targets=1) as stage:
            await stage.register("iris")
            await stage.mesh.load("iris")
            stage.runtime.forget("iris")
            (target,) = stage.runtime.targets
            stage.dataplane.lose_target(target)
            stage.runtime.crash_target(target)
            await asyncio.sleep(1.0)
            await stage.mesh.load("iris", timeout_s=5.0)
            assert "iris" in stage.runtime.loaded
            stage.mesh.check()

    run(scene())
