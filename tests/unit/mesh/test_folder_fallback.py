"""Requests for a model folder whose highest version is broken, with a real mesh: also those that wait get the next version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from modelmesh.errors import Code, LoadFailed
from modelmesh.journal import Did, Entry
from modelmesh.mesh.naming.folder import FolderKeeper
from modelmesh.storage.folder import FolderScanner
from modelmesh.testing.runtime import Artefact
from modelmesh.testing.stage import Stage

BROKEN = LoadFailed("It ends in the middle.", code=Code.INVALID_ARGUMENT)


def versions(folder: Path, *broken: int) -> dict[str, Artefact]:
    """Three versions of iris, some of them broken, by path."""
    artefacts = {}
    for version in (1, 2, 3):
        path = folder / "iris" / str(version)
        path.mkdir(parents=True)
        (path / "model").touch()
        artefacts[str(path)] = Artefact(error=BROKEN if version in broken else None)
    return artefacts


def serve(
    folder: Path,
    artefacts: dict[str, Artefact],
    scenario: Callable[[Stage], Awaitable[None]],
    *,
    restarted: bool = False,
) -> None:
    """With `restarted`, all that is known of the folder is the registry: it is not looked through yet."""

    def sink(entry: Entry) -> None:
        if entry.did is Did.LOAD_FAILED:
            keepers[0].load_failed(entry.model)

    keepers: list[FolderKeeper] = []

    async def run() -> None:
        async with Stage(sink=sink) as stage:
            stage.artefacts.update(artefacts)
            keepers.append(keeper_of(stage, folder))
            await keepers[0].start()
            if restarted:
                await keepers[0].stop()
                keepers[0] = keeper_of(stage, folder)
            try:
                await scenario(stage)
            finally:
                await keepers[0].stop()

    asyncio.run(run())


def keeper_of(stage: Stage, folder: Path) -> FolderKeeper:
    scanner = FolderScanner(
        folder, lambda names: "fake", lambda type, path, names: "", wall_ns=lambda: 1 << 62
    )
    mesh = stage.mesh
    return FolderKeeper(scanner, mesh.vmodel_calls, mesh, stage.journal, mesh.redirect, pause_s=0.02)


def serving(stage: Stage) -> str:
    return stage.mesh.vmodel("iris").active.partition("@")[0]


def test_those_that_wait_for_a_cold_model_get_the_next_version_that_loads(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        assert serving(stage) == "iris:3"
        requests = [stage.ask("iris") for _ in range(5)]
        asked_for_it = stage.ask("iris:3")
        for request in requests:
            assert (await request.answer).code is Code.OK
            assert request.model.startswith("iris:1@")
        assert (await asked_for_it.answer).code is Code.INVALID_ARGUMENT
        assert (await stage.ask("iris").answer).code is Code.OK
        await stage.until(lambda: serving(stage) == "iris:1")
        assert (await stage.ask("iris").answer).code is Code.OK
        refused = stage.told(Did.REFUSED)
        assert sum(int(entry.numbers["waiting"]) for entry in refused) == 1, "others were not refused"

    serve(tmp_path, versions(tmp_path, 2, 3), scenario)


def test_after_a_restart_the_registry_knows_the_versions(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        requests = [stage.ask("iris") for _ in range(3)]
        assert {(await request.answer).code for request in requests} == {Code.OK}
        assert serving(stage) == "iris:3", "nobody follows the folder yet"

    serve(tmp_path, versions(tmp_path, 3), scenario, restarted=True)


def test_without_any_that_loads_the_reason_of_the_highest_is_told(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        for _ in range(2):
            answer = await stage.ask("iris").answer
            assert answer.code is Code.INVALID_ARGUMENT
            assert answer.message.startswith("It ends in the middle. (Tried again in ")
        assert serving(stage) == "iris:3"

    serve(tmp_path, versions(tmp_path, 1, 2, 3), scenario)


def test_a_higher_version_that_is_broken_leaves_the_lower_one_serving(tmp_path: Path) -> None:
    artefacts = versions(tmp_path, 3)
    (tmp_path / "iris" / "3").rename(tmp_path / "aside")

    async def scenario(stage: Stage) -> None:
        assert (await stage.ask("iris").answer).code is Code.OK
        (tmp_path / "aside").rename(tmp_path / "iris" / "3")
        await stage.until(lambda: bool(stage.told(Did.LOAD_FAILED)))
        for _ in range(5):
            request = stage.ask("iris")
            assert (await request.answer).code is Code.OK
            assert request.model.startswith("iris:2@")
        await stage.until(lambda: stage.mesh.vmodel("iris").target.startswith("iris:2@"))

    serve(tmp_path, artefacts, scenario)
