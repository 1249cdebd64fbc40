"""A folder on disk becomes concrete models behind vmodels, and follows every change."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from modelmesh.clock import LoopClock
from modelmesh.errors import Code, LoadFailed
from modelmesh.journal import Did, Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming.folder import OWNER, FolderKeeper
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.naming.vmodel_rules import Setting
from modelmesh.mesh.naming.vmodels import VModels
from modelmesh.registry.keep import NO_KEEP, Keep, KeepChange
from modelmesh.registry.mirror import Mirror
from modelmesh.storage.folder import FolderScanner
from modelmesh.store.memory import MemoryStore
from modelmesh.store.protocol import Txn


class Loader:
    """Loads succeed at once unless the model is broken; what was loaded is remembered."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.broken: dict[str, str] = {}

    async def ensure_loaded(self, model: str, *, why: str) -> None:
        await asyncio.sleep(0)
        if model in self.broken:
            raise LoadFailed(self.broken[model], code=Code.INVALID_ARGUMENT, retry_after_s=60)
        self.loaded.add(model)

    async def bring(self, model: str, copies: int, *, beside: str, why: str) -> None:
        await self.ensure_loaded(model, why=why)

    def copies(self, model: str) -> int:
        return int(model in self.loaded)

    def failure(self, model: str) -> str:
        return self.broken.get(model, "")


def guess(files: Sequence[str]) -> str | None:
    return next(("onnx" for name in files if name.endswith(".onnx")), None)


class House:
    """An instance that serves a folder; what it needs outlives it in `store`."""

    def __init__(self, folder: Path, store: MemoryStore) -> None:
        self.folder = folder
        self.store = store
        self.skew_s = 0.0
        """Added to the scanner's clock: tests do not wait for the second look."""
        self.calm = True
        clock = LoopClock()
        self.journal = Journal(clock)
        self.mirror = Mirror()
        self.registrar = Registrar(store, self.mirror, clock, self.journal)
        self.loader = Loader()
        self.vmodels = VModels(self.registrar, self.loader, clock, self.journal)
        scanner = FolderScanner(
            folder,
            guess,
            lambda type, path, files: "",
            monotonic_s=lambda: time.monotonic() + self.skew_s,
            wall_ns=lambda: time.time_ns() + (3600 if self.calm else -3600) * 1_000_000_000,
        )
        self.redirected: dict[str, str] = {}
        self.keeper = FolderKeeper(
            scanner, self.vmodels, self.loader, self.journal, self.redirected.__setitem__, pause_s=0.005
        )

    async def start(self) -> None:
        await self.registrar.start()
        self.vmodels.start()
        await self.keeper.start()

    async def stop(self) -> None:
        await self.keeper.stop()
        await self.keeper.stop()
        await self.vmodels.stop()
        await self.registrar.stop()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition while scans go on; each wait lets the scanner's clock jump."""
        async with asyncio.timeout(20):
            while not condition():
                self.skew_s += 1.0
                await asyncio.sleep(0.005)

    async def for_a_while(self) -> None:
        """Let several scans pass."""
        for _ in range(10):
            self.skew_s += 1.0
            await asyncio.sleep(0.02)

    def names(self) -> dict[str, str]:
        """vmodel -> the path its active model is loaded from, relative to the folder."""
        names: dict[str, str] = {}
        for id, record in self.mirror.page_vmodels(limit=0):
            model = self.mirror.model(record.active)
            assert model is not None
            assert record.owner == OWNER
            assert record.active.startswith(id.partition(":")[0])
            names[id] = os.path.relpath(model.path, self.folder)
        return names

    def keep(self, name: str) -> Keep:
        record = self.mirror.model(self.active(name))
        assert record is not None
        return record.keep

    def active(self, name: str) -> str:
        record = self.mirror.vmodel(name)
        assert record is not None
        return record.active

    def told(self, did: Did) -> list[str]:
        return [entry.reason for entry in self.journal.since(0) if entry.did is did]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


def write(path: Path, content: str = "x") -> None:
    """Write as a careful user does: beside it, then moved into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent.parent / f".{path.name}"
    aside.write_text(content)
    aside.rename(path)


def serve(
    folder: Path, scenario: Callable[[House], Awaitable[None]], store: MemoryStore | None = None
) -> MemoryStore:
    store = store or MemoryStore()

    async def main() -> None:
        house = House(folder, store)
        await house.start()
        try:
            await scenario(house)
        finally:
            await house.stop()

    asyncio.run(main())
    return store


async def nothing(house: House) -> None:
    pass


def test_everything_is_registered_when_the_start_is_over(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")
    write(folder / "wine.onnx")
    write(folder / "deep" / "1" / "model.onnx")
    write(folder / "deep" / "2" / "model.onnx")
    write(folder / "README.md")

    async def scenario(house: House) -> None:
        assert house.names() == {
            "iris": "iris",
            "wine": "wine.onnx",
            "deep:1": "deep/1",
            "deep:2": "deep/2",
            "deep": "deep/2",
        }
        assert {record.references for id, record in house.mirror.page() if id.startswith("deep:2@")} == {2}
        assert all(record.auto_delete for _, record in house.mirror.page())
        assert house.told(Did.SKIPPED) == ["Skipped README.md: it is no file of a known model format"]

    serve(folder, scenario)


def test_what_is_being_written_is_waited_for_at_the_start(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")

    async def main() -> None:
        house = House(folder, MemoryStore())
        house.calm = False
        await house.start()
        assert house.names() == {"iris": "iris"}
        await house.stop()

    asyncio.run(main())


def test_a_changed_folder_is_switched_to_and_the_old_model_forgotten(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")

    async def scenario(house: House) -> None:
        before = house.active("iris")
        house.loader.loaded.add(before)
        write(folder / "iris" / "model.onnx", "better")
        await house.until(lambda: house.active("iris") != before)
        assert house.active("iris") in house.loader.loaded, "it was loaded before the switch"
        assert house.mirror.model(before) is None
        assert house.mirror.n_models == 1

    serve(folder, scenario)


def test_how_a_name_is_kept_outlives_its_files(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")
    write(folder / "rose" / "1" / "model.onnx")

    async def scenario(house: House) -> None:
        for name in ("iris", "rose"):
            await house.registrar.keep(house.active(name), KeepChange(min_copies=2))
        before = house.active("iris")
        house.loader.loaded.update((before, house.active("rose")))
        write(folder / "iris" / "model.onnx", "better")
        write(folder / "rose" / "2" / "model.onnx")
        await house.until(lambda: house.active("iris") != before and house.names()["rose"] == "rose/2")
        keeps = {path: house.keep(id) for id, path in house.names().items()}
        assert keeps == {"iris": Keep(2), "rose/1": NO_KEEP, "rose/2": Keep(2)}, "the bare name had it"
        write(folder / "rose" / "2" / "model.onnx", "better")
        second = house.active("rose")
        await house.until(lambda: house.active("rose") != second)
        assert house.keep("rose") == house.keep("rose:2") == Keep(2)

    serve(folder, scenario)


def test_a_broken_change_leaves_the_old_model_serving_and_says_why(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")

    async def scenario(house: House) -> None:
        before = house.active("iris")
        house.loader.loaded.add(before)

        class Everything(dict[str, str]):
            def __contains__(self, model: object) -> bool:
                return model != before

            def __getitem__(self, model: str) -> str:
                return "not a model at all"

        house.loader.broken = Everything()
        write(folder / "iris" / "model.onnx", "broken")
        await house.until(lambda: house.vmodels.view("iris").target_failed)
        view = house.vmodels.view("iris")
        assert (view.active, view.reason) == (before, "not a model at all")
        assert any("not a model at all" in reason for reason in house.told(Did.LOAD_FAILED))
        house.loader.broken = {}
        write(folder / "iris" / "model.onnx", "mended")
        await house.until(lambda: house.active("iris") not in (before, view.target))
        await house.until(lambda: house.mirror.n_models == 1)

    serve(folder, scenario)


def test_added_and_removed_names(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")
    write(folder / "stays" / "model.onnx")

    async def scenario(house: House) -> None:
        write(folder / "wine" / "model.onnx")
        await house.until(lambda: "wine" in house.names())
        shutil.rmtree(folder / "iris")
        await house.until(lambda: "iris" not in house.names())
        assert house.names() == {"stays": "stays", "wine": "wine"}
        assert house.mirror.n_models == 2

    serve(folder, scenario)


def test_what_stops_being_a_model_is_kept_and_told(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")

    async def scenario(house: House) -> None:
        before = house.active("iris")
        (folder / "iris" / "model.onnx").rename(folder / "iris" / "model.txt")
        await house.until(lambda: bool(house.told(Did.SKIPPED)))
        await house.for_a_while()
        assert house.active("iris") == before
        assert len(house.told(Did.SKIPPED)) == 1, "told once"

    serve(folder, scenario)


def test_versions_come_and_go(folder: Path) -> None:
    write(folder / "iris" / "1" / "model.onnx")

    async def scenario(house: House) -> None:
        assert house.names() == {"iris": "iris/1", "iris:1": "iris/1"}
        write(folder / "iris" / "3" / "model.onnx")
        await house.until(lambda: house.names().get("iris") == "iris/3")
        assert house.active("iris") in house.loader.loaded, (
            "loaded before the name moved, though nothing was loaded"
        )
        write(folder / "iris" / "2" / "model.onnx")
        await house.until(lambda: "iris:2" in house.names())
        assert house.names()["iris"] == "iris/3"
        shutil.rmtree(folder / "iris" / "3")
        await house.until(lambda: house.names() == {"iris": "iris/2", "iris:1": "iris/1", "iris:2": "iris/2"})
        assert house.mirror.n_models == 2
        write(folder / "iris" / "2" / "half.onnx.part")
        await house.until(lambda: bool(house.told(Did.SKIPPED)))
        await house.for_a_while()
        assert "iris:2" in house.names(), "a version that is being written is kept"

    serve(folder, scenario)


def test_the_bare_name_follows_the_highest_version_that_loads(folder: Path) -> None:
    write(folder / "iris" / "1" / "model.onnx")
    write(folder / "iris" / "2" / "model.onnx")

    async def scenario(house: House) -> None:
        second = house.active("iris:2")
        house.loader.broken[second] = "bad second version"
        house.keeper.load_failed("iris")
        house.keeper.load_failed(house.active("iris:1"))
        assert house.redirected == {}
        house.keeper.load_failed(second)
        assert house.redirected == {"iris": house.active("iris:1")}, "before anything is written"
        await house.until(lambda: house.names()["iris"] == "iris/1")
        assert any("bad second version" in reason for reason in house.told(Did.WARNED))
        await house.for_a_while()
        assert house.names()["iris"] == "iris/1"
        del house.loader.broken[second]
        await house.until(lambda: house.names()["iris"] == "iris/2")
        house.loader.broken[second] = "bad again"
        await house.until(lambda: house.names()["iris"] == "iris/1")
        write(folder / "iris" / "2" / "model.onnx", "mended")
        await house.until(lambda: house.names()["iris"] == "iris/2")
        assert house.active("iris") == house.active("iris:2") != second

    serve(folder, scenario)


def test_a_folder_that_changes_between_one_model_and_versions(folder: Path) -> None:
    write(folder / "iris" / "1" / "model.onnx")

    async def scenario(house: House) -> None:
        shutil.rmtree(folder / "iris" / "1")
        write(folder / "iris" / "model.onnx")
        await house.until(lambda: house.names() == {"iris": "iris"})
        (folder / "iris" / "model.onnx").unlink()
        write(folder / "iris" / "1" / "model.onnx")
        await house.until(lambda: house.names() == {"iris": "iris/1", "iris:1": "iris/1"})

    serve(folder, scenario)


def test_a_restart_writes_only_what_changed(folder: Path) -> None:
    for name in ("iris", "wine", "gone", "changed"):
        write(folder / name / "model.onnx")
    write(folder / "file.onnx")
    write(folder / "goner.onnx")
    store = serve(folder, nothing)
    shutil.rmtree(folder / "gone")
    (folder / "goner.onnx").unlink()
    write(folder / "changed" / "model.onnx", "other")
    write(folder / "new" / "model.onnx")
    written: list[Txn] = []
    commit = store.commit

    async def spy(txn: Txn):  # type: ignore[no-untyped-def]
        written.append(txn)
        return await commit(txn)

    store.commit = spy  # type: ignore[method-assign]

    async def scenario(house: House) -> None:
        assert "new" in house.names(), "what is new is there when the start is over"
        await house.until(lambda: not {"gone", "goner"} & set(house.names()))
        await house.until(lambda: len(house.mirror.page()) == 5)
        assert set(house.names()) == {"iris", "wine", "changed", "new", "file"}
        keys = {key.split("@")[0] for txn in written for key in (*txn.puts, *txn.deletes)}
        assert keys == {
            f"{kind}/{name}"
            for kind in ("registry", "vmodels")
            for name in ("gone", "goner", "changed", "new")
        }

    serve(folder, scenario, store)


def test_an_empty_folder_after_a_restart_removes_nothing(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")
    store = serve(folder, nothing)
    (folder / "iris").rename(folder.parent / "iris")

    async def scenario(house: House) -> None:
        await house.until(lambda: any("not mounted" in reason for reason in house.told(Did.WARNED)))
        await house.for_a_while()
        assert house.names() == {"iris": "iris"}
        (folder.parent / "iris").rename(folder / "iris")
        write(folder / "wine" / "model.onnx")
        await house.until(lambda: set(house.names()) == {"iris", "wine"})
        assert len(house.told(Did.WARNED)) == 1

    serve(folder, scenario, store)


def test_a_missing_folder_removes_nothing_and_is_followed_when_it_is_back(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")

    async def scenario(house: House) -> None:
        shutil.move(folder, folder.parent / "aside")
        await house.until(lambda: any("cannot be read" in reason for reason in house.told(Did.WARNED)))
        await house.for_a_while()
        assert set(house.names()) == {"iris"}
        shutil.move(folder.parent / "aside", folder)
        write(folder / "wine" / "model.onnx")
        await house.until(lambda: set(house.names()) == {"iris", "wine"})

    serve(folder, scenario)


def test_what_was_made_by_hand_is_never_touched(folder: Path) -> None:
    async def main() -> None:
        house = House(folder, MemoryStore())
        await house.registrar.start()
        house.vmodels.start()
        await house.registrar.register(Registration("mine", "onnx", "/elsewhere"))
        await house.vmodels.set(Setting("iris", "mine"))
        await house.vmodels.set(Setting("unrelated", "mine"))
        write(folder / "iris" / "model.onnx")
        write(folder / "wine" / "model.onnx")
        await house.keeper.start()
        assert house.active("iris") == "mine"
        assert any(reason.startswith("Skipped iris:") for reason in house.told(Did.SKIPPED))
        assert house.active("wine").startswith("wine@")
        shutil.rmtree(folder / "iris")
        await house.for_a_while()
        assert house.active("iris") == "mine"
        assert {id for id, _ in house.mirror.page_vmodels()} == {"iris", "unrelated", "wine"}
        assert house.mirror.model("mine") is not None
        await house.stop()

    asyncio.run(main())


def test_a_store_that_is_away_loses_no_change(folder: Path) -> None:
    write(folder / "iris" / "model.onnx")

    async def scenario(house: House) -> None:
        house.store.outage = "The store is away."
        write(folder / "wine" / "model.onnx")
        await house.for_a_while()
        assert set(house.names()) == {"iris"}
        house.store.outage = ""
        await house.until(lambda: set(house.names()) == {"iris", "wine"})

    serve(folder, scenario)


def test_many_skipped_entries_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(150):
        write(folder / f"note{number}.txt")

    async def scenario(house: House) -> None:
        assert len(house.told(Did.SKIPPED)) == 100

    serve(folder, scenario)
    assert "150 entries" in caplog.text


def test_a_name_that_others_let_go_is_taken(folder: Path) -> None:
    async def main() -> None:
        house = House(folder, MemoryStore())
        await house.registrar.start()
        house.vmodels.start()
        await house.registrar.register(Registration("mine", "onnx", "/elsewhere"))
        await house.vmodels.set(Setting("iris", "mine"))
        write(folder / "iris.onnx")
        write(folder / "wine" / "1" / "model.onnx")
        await house.keeper.start()
        await house.vmodels.delete("iris")
        await house.until(lambda: house.names().get("iris") == "iris.onnx")
        await house.vmodels.delete("wine:1")
        await house.until(lambda: "wine:1" in house.names())
        await house.for_a_while()
        assert set(house.names()) == {"iris", "wine", "wine:1"}
        await house.stop()

    asyncio.run(main())


def test_a_guess_that_raises_does_not_end_the_following(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("modelmesh.mesh.naming.folder.AFTER_BUG_S", 0.01)
    write(folder / "iris" / "model.onnx")

    async def scenario(house: House) -> None:
        guess, house.keeper._scanner._guess = house.keeper._scanner._guess, None  # type: ignore[assignment]
        write(folder / "wine" / "model.onnx")
        await house.until(lambda: "could not be followed" in caplog.text)
        house.keeper._scanner._guess = guess
        await house.until(lambda: set(house.names()) == {"iris", "wine"})

    serve(folder, scenario)
