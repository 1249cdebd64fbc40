"""Looking at the files of models while a disk hangs."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmesh.errors import Code, LoadFailed
from modelmesh.runtime import examined
from modelmesh.runtime.examined import Examinations
from modelmesh.runtime.protocol import ModelSpec


class Disk:
    """Reading under `hung` waits until it is back."""

    def __init__(self, hung: Path) -> None:
        self.hung = hung
        self.back = threading.Event()
        self.looks: list[str] = []

    def refusal(self, path: str) -> str:
        self.looks.append(path)
        if path.startswith(str(self.hung)):
            self.back.wait(30)
        return ""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    for name in ("well", "hung"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pkl").write_bytes(pickle.dumps({}))
    disk = Disk(tmp_path / "hung")
    yield disk
    disk.back.set()


def test_a_disk_that_hangs_is_told_and_holds_up_nothing_else(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examined, "LOOK_S", 0.1)
    monkeypatch.setattr(examined, "POLL_S", 0.01)
    hung = ModelSpec("a", "sklearn", str(disk.hung))
    well = ModelSpec("b", "sklearn", str(disk.hung.with_name("well")))

    async def scenario() -> None:
        examinations = Examinations(disk.refusal)
        for _ in range(20):
            with pytest.raises(LoadFailed, match="could not be looked at") as told:
                await examinations.afresh(hung)
            assert told.value.code is Code.UNAVAILABLE
        assert disk.looks == [hung.path], "it hangs, and is not begun again and again"
        assert await examinations.hangs(hung)
        assert (await examinations.afresh(well)).size_bytes > 0
        waiting = asyncio.create_task(examinations.wait_answer(hung))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        disk.back.set()
        await asyncio.wait_for(waiting, 10)
        assert (await examinations.afresh(hung)).size_bytes > 0
        examinations.stop()

    asyncio.run(scenario())


def test_files_that_are_not_there_are_an_answer(disk: Disk) -> None:
    async def scenario() -> None:
        examinations = Examinations(disk.refusal)
        assert not await examinations.hangs(ModelSpec("c", "sklearn", str(disk.hung.with_name("none"))))
        examinations.stop()

    asyncio.run(scenario())
