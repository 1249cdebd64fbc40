"""While instances of the predecessor are alive, nothing is written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from modelmesh.clock import LoopClock
from modelmesh.errors import FailedPrecondition
from modelmesh.journal import Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming.coexistence import Coexistence
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.registry.mirror import ChangedIds, Mirror
from modelmesh.store.memory import MemoryStore
from modelmesh.store.protocol import Txn
from modelmesh.testing.loop import run

MODEL = Registration("iris", "sklearn", "/iris")


class House:
    def __init__(self, read_only: bool = False, kept_changes: int = 100) -> None:
        self.clock = LoopClock()
        self.store = MemoryStore(kept_changes)
        self.journal = Journal(self.clock)
        self.registrar = Registrar(self.store, Mirror(), self.clock, self.journal, read_only=read_only)
        self.coexistence = Coexistence(self.store, self.registrar, self.journal)

    async def put(self, *instances: str) -> None:
        await self.store.commit(Txn(puts={f"instances/{instance}": b"{}" for instance in instances}))

    async def gone(self, *instances: str) -> None:
        await self.store.commit(Txn(deletes=[f"instances/{instance}" for instance in instances]))


def scenario(what: Callable[[House], Awaitable[None]], *, read_only: bool = False, kept: int = 100) -> None:
    async def main() -> None:
        house = House(read_only, kept)
        await house.store.open()
        try:
            await what(house)
        finally:
            await house.registrar.stop()
            await house.coexistence.stop()
            await house.coexistence.stop()

    run(main())


def test_nothing_is_written_until_the_last_has_gone() -> None:
    async def what(house: House) -> None:
        await house.put("a", "b")
        await house.store.commit(
            Txn(
                puts={
                    "registry/m": b'{"type":"onnx","refs":1}',
                    "registry/n": b'{"type":"onnx","refs":1}',
                    "vmodels/v": b'{"amid":"m","tmid":"n"}',
                }
            )
        )
        await house.coexistence.start()
        await house.registrar.start()
        told: list[ChangedIds] = []
        house.registrar.on_change(told.append)
        assert house.registrar.read_only
        with pytest.raises(FailedPrecondition, match="ModelMesh are alive in this registry"):
            await house.registrar.register(MODEL)
        house.registrar.used("m", 10)
        await house.gone("a")
        await asyncio.sleep(5)
        with pytest.raises(FailedPrecondition):
            await house.registrar.register(MODEL)
        await house.gone("b")
        await asyncio.sleep(0.1)
        assert not house.registrar.read_only
        assert [changed.vmodels for changed in told] == [{"v"}], "who is under way is taken up"
        await house.registrar.register(MODEL)

    scenario(what)


def test_one_that_comes_later_stops_the_writing() -> None:
    async def what(house: House) -> None:
        await house.coexistence.start()
        await house.registrar.start()
        await house.registrar.register(MODEL)
        house.registrar.learned("iris", 5, 5, "")
        await house.put("late")
        await asyncio.sleep(5)
        with pytest.raises(FailedPrecondition):
            await house.registrar.unregister("iris")
        (entry,) = (await house.store.snapshot("registry/")).entries
        assert b"sizeBytes" not in entry.value, "what was learned waits too"
        await house.gone("late")
        await asyncio.sleep(5)
        (entry,) = (await house.store.snapshot("registry/")).entries
        assert b"sizeBytes" in entry.value

    scenario(what)


def test_a_registry_that_was_made_read_only_stays_so() -> None:
    async def what(house: House) -> None:
        await house.put("a")
        await house.coexistence.start()
        await house.registrar.start()
        await house.gone("a")
        await asyncio.sleep(1)
        with pytest.raises(FailedPrecondition, match="without read-only mode"):
            await house.registrar.register(MODEL)

    scenario(what, read_only=True)


def test_changes_that_are_no_longer_kept_are_found_out() -> None:
    async def what(house: House) -> None:
        await house.put("a")
        await house.coexistence.start()
        await house.registrar.start()
        await house.gone("a")
        for n in range(5):
            await house.store.commit(Txn(puts={f"config/{n}": b""}))
        await asyncio.sleep(1)
        assert not house.registrar.read_only

    scenario(what, kept=2)
