"""Models in a worker: what a load costs, what an unload gives back."""

from __future__ import annotations

import gc
import mmap
import weakref
from pathlib import Path
from typing import Any

import pytest

from modelmesh.worker import memory, residents
from modelmesh.worker.control import Load
from modelmesh.worker.formats import table
from modelmesh.worker.formats.protocol import Claim, InputSpec, OutputSpec, SizeHints
from modelmesh.worker.residents import SIZE_BYTES_MIN, Residents

MIB = 1 << 20


class Weights:
    """A model that is as large as its file says; `knot` makes it part of a cycle."""

    platform = "weights"
    inputs = (InputSpec("x", "FP32", (-1,)),)
    outputs = (OutputSpec("y", "FP32", (-1,), True),)
    row_wise = True

    def __init__(self, n_bytes: int, *, knot: bool) -> None:
        self.data = bytearray(n_bytes)
        self.knot = self if knot else None

    def infer(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
        return {"y": inputs["x"]}

    def owned(self) -> object:
        return self


class WeightsFormat:
    """Files that hold a number of bytes to allocate, for the time of the load and for good."""

    name = extra = "weights"
    modules = ("nothing",)
    well_known = ("model.weights",)
    hints = SizeHints(0, 1.0, 1.0)
    imports = 0

    def claims(self, files: Any) -> Claim:
        return Claim.WELL_KNOWN

    def pick(self, files: Any) -> str | None:
        return files[0]  # type: ignore[no-any-return]

    def recognises(self, head: bytes) -> bool:
        return True

    def import_framework(self) -> None:
        WeightsFormat.imports += 1

    def load(self, path: Path) -> Weights:
        keep, passing, *rest = path.read_text().split()
        if passing_bytes := int(passing):
            # Pages of its own: from the heap it might get some that earlier tests have left resident.
            with mmap.mmap(-1, passing_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ballast:
                ballast[:: mmap.PAGESIZE] = b"x" * len(ballast[:: mmap.PAGESIZE])
        return Weights(int(keep), knot=bool(rest))


@pytest.fixture
def loaded_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that loads a model of given sizes into residents."""
    monkeypatch.setattr(table, "formats", lambda: {"weights": WeightsFormat()})

    def load(into: Residents, handle: int, keep_bytes: int, passing_bytes: int = 0, knot: str = "") -> Any:
        path = tmp_path / str(handle)
        path.write_text(f"{keep_bytes} {passing_bytes} {knot}")
        return into.load(Load(f"m{handle}", handle, "weights", str(path), ""))

    return load


def test_the_size_is_what_stays_and_the_peak_what_passed(loaded_into: Any) -> None:
    into = Residents()
    done = loaded_into(into, 1, 5 * MIB, 20 * MIB)
    assert 5 * MIB <= done.size_bytes < 5.5 * MIB
    assert done.peak_bytes >= done.size_bytes
    if memory.LINUX:
        assert done.peak_bytes > 15 * MIB
    assert done.measured
    assert done.load_s > 0
    assert len(done.content) == 64


def test_a_tiny_model_still_costs_something(loaded_into: Any) -> None:
    assert loaded_into(Residents(), 1, 1).size_bytes >= SIZE_BYTES_MIN


def test_a_known_content_is_not_hashed_again(
    loaded_into: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = Residents()
    (tmp_path / "1").write_text("5 0")
    monkeypatch.setattr("modelmesh.worker.artefact.Artefact.content", lambda self: pytest.fail("hashed"))
    monkeypatch.setattr(table, "formats", lambda: {"weights": WeightsFormat()})
    assert into.load(Load("m", 1, "weights", str(tmp_path / "1"), "known")).content == "known"


def test_a_known_size_is_not_measured_again(
    loaded_into: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = Residents()
    measured = loaded_into(into, 1, 300_000)

    def no_reading() -> int:
        raise AssertionError("the heap was read")

    monkeypatch.setattr(memory, "heap_bytes", no_reading)
    done = into.load(Load("m", 2, "weights", str(tmp_path / "1"), "known", measured.size_bytes))
    assert (done.size_bytes, done.measured, done.peak_bytes) == (measured.size_bytes, True, 0)
    assert into.get(2) is not None
    into.free(2)
    assert into.get(2) is None


def test_a_freed_model_is_gone(loaded_into: Any) -> None:
    into = Residents()
    loaded_into(into, 1, 5 * MIB)
    watch = weakref.ref(into.get(1))
    in_use_bytes = memory.heap_bytes()
    into.free(1)
    assert watch() is None
    assert into.get(1) is None
    assert in_use_bytes - memory.heap_bytes() > 4 * MIB
    into.free(1)


def test_a_model_in_a_cycle_is_collected_though_it_was_frozen(loaded_into: Any) -> None:
    gc.disable()
    try:
        into = Residents()
        loaded_into(into, 1, 5 * MIB, 0, "knot")
        watch = weakref.ref(into.get(1))
        into.free(1)
        assert watch() is None
    finally:
        gc.enable()


def test_full_collections_are_not_run_one_after_the_other(
    loaded_into: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(residents.time, "monotonic", lambda: now.__setitem__(0, now[0] + 0.5) or now[0])
    into = Residents()
    for handle in (1, 2):
        loaded_into(into, handle, 1000, 0, "knot")
    watches = [weakref.ref(into.get(handle)) for handle in (1, 2)]
    into.free(1)
    into.free(2)
    assert [watch() is None for watch in watches] == [True, False], (
        "the second waits, for the first took half a second"
    )
    now[0] += 60.0
    into.tidy(1 << 40)
    assert watches[1]() is None


def test_a_size_beside_batches_is_provisional_and_settles(
    loaded_into: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = Residents()
    loaded_into(into, 9, 1)
    passing: list[bytearray] = []
    load = WeightsFormat.load

    def load_beside_a_batch(self: WeightsFormat, path: Path) -> Weights:
        into.batches += 1
        passing.append(bytearray(3 * MIB))
        return load(self, path)

    monkeypatch.setattr(WeightsFormat, "load", load_beside_a_batch)
    done = loaded_into(into, 1, 5 * MIB)
    assert not done.measured
    assert done.size_bytes > 7 * MIB
    assert into.settle() == {}, "too early"
    passing.clear()
    now_s = residents.time.monotonic() + 5.0
    monkeypatch.setattr(residents.time, "monotonic", lambda: now_s)
    assert 4.9 * MIB < into.settle()[1] < 5.5 * MIB
    assert into.settle() == {}, "told once"


def test_what_was_freed_beside_a_load_is_not_taken_off_its_size(
    loaded_into: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = Residents()
    loaded_into(into, 1, 8 * MIB)
    load = WeightsFormat.load

    def load_beside_an_unload(self: WeightsFormat, path: Path) -> Weights:
        into.free(1)
        return load(self, path)

    monkeypatch.setattr(WeightsFormat, "load", load_beside_an_unload)
    done = loaded_into(into, 2, 5 * MIB)
    assert 4.9 * MIB < done.size_bytes < 5.5 * MIB
    assert not done.measured


def test_a_load_that_imports_is_repeated_to_tell_the_two_apart(
    loaded_into: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    into = Residents()
    load = WeightsFormat.load

    def load_and_import(self: WeightsFormat, path: Path) -> Weights:
        if "a_library_of_the_model" not in sys.modules:
            module = types.ModuleType("a_library_of_the_model")
            module.tables = bytearray(30 * MIB)  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, "a_library_of_the_model", module)
        return load(self, path)

    monkeypatch.setattr(WeightsFormat, "load", load_and_import)
    done = loaded_into(into, 1, 5 * MIB)
    assert 29 * MIB < done.base_bytes < 31 * MIB
    assert 4.9 * MIB < done.size_bytes < 5.5 * MIB
    assert loaded_into(into, 2, 5 * MIB).base_bytes == 0


def test_a_format_is_imported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "formats", lambda: {"weights": WeightsFormat()})
    before = WeightsFormat.imports
    into = Residents()
    into.import_format("weights")
    into.import_format("weights")
    assert WeightsFormat.imports == before + 1
