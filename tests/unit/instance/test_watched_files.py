"""Files that change while an instance runs, also the way a ConfigMap does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from modelmesh.clock import LoopClock
from modelmesh.errors import SettingsError
from modelmesh.instance.watched_files import WatchedFiles
from modelmesh.journal import Did, Journal


class Reader:
    """What takes a file into use: it holds what was read last, and refuses the text "bad"."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.held = ""
        self.attempts = 0

    def use(self) -> None:
        self.attempts += 1
        text = self._path.read_text()
        if text == "bad":
            raise SettingsError("It is bad.")
        self.held = text


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def mounted(folder: Path, version: str, text: str) -> None:
    """What the kubelet does with a ConfigMap: a new folder, then `..data` is swapped to it."""
    (folder / version).mkdir()
    (folder / version / "config").write_text(text)
    new = folder / "..data_tmp"
    new.symlink_to(version)
    new.rename(folder / "..data")
    if not (folder / "config").is_symlink():
        (folder / "config").symlink_to(Path("..data") / "config")


def test_a_swapped_mount_is_read_anew_and_what_is_broken_changes_nothing(tmp_path: Path) -> None:
    mounted(tmp_path, "1", "one")

    async def test() -> None:
        journal = Journal(LoopClock())
        reader = Reader(tmp_path / "config")
        reader.use()
        watched = WatchedFiles(
            [tmp_path / "config"], reader.use, journal, "The file", look_s=0.001, recheck_s=0.002
        )
        watching = asyncio.create_task(watched.run())
        mounted(tmp_path, "2", "two")
        await until(lambda: reader.held == "two")
        mounted(tmp_path, "3", "bad")
        await until(lambda: bool(journal.about("")))
        assert reader.held == "two"
        [warning] = journal.about("")
        assert warning.did is Did.WARNED and warning.reason.endswith("the old one stays: It is bad.")
        attempts = reader.attempts
        mounted(tmp_path, "4", "four")
        await until(lambda: reader.held == "four")
        assert reader.attempts == attempts + 1, "what is broken is tried twice, not at every look"
        (tmp_path / "config").unlink()
        await until(lambda: len(journal.about("")) == 2)
        assert reader.held == "four" and not watching.done()
        watching.cancel()

    asyncio.run(test())


def test_a_writer_who_was_half_way_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("one")

    async def test() -> None:
        journal = Journal(LoopClock())
        reader = Reader(path)

        def use() -> None:
            if reader.attempts == 0:
                path.write_text("whole")  # between the first attempt and the second
                reader.attempts += 1
                raise SettingsError("It is half.")
            reader.use()

        watched = WatchedFiles([path], use, journal, "The file", look_s=0.001, recheck_s=0.002)
        watching = asyncio.create_task(watched.run())
        path.write_text("half")
        await until(lambda: reader.held == "whole")
        assert not journal.about("")
        watching.cancel()

    asyncio.run(test())
