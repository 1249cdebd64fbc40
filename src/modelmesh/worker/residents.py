"""The models in this process: load one and measure it, find one, free one and see that it is gone."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelmesh.errors import Code, LoadFailed
from modelmesh.worker import memory
from modelmesh.worker.artefact import read_artefact, unreadable
from modelmesh.worker.control import Changed, Load, LoadDone
from modelmesh.worker.formats.protocol import Format, LoadedModel
from modelmesh.worker.formats.table import format_named, missing_extra

SIZE_BYTES_MIN = 4096
"""A model is never charged less: the tables that know it weigh about that."""
RELOAD_S_MAX = 2.0
"""The first load of a format, and one that imported modules, also set up what all later ones use; it is repeated to tell
its size from theirs, unless it took longer than this."""
COLLECT_SHARE_MAX = 0.05
"""Full garbage collections take at most this share of the time."""
SLACK_BYTES_MAX = 8 << 20
"""Free pages kept before the supervisor says how many may be."""
LOOK_SHARE = 0.05
"""Of the free pages that may be kept: so many bytes are unloaded before what is kept is looked at again."""
TRIM_SHARE_MAX = 0.25
"""Trims after unloads take at most this share of the time."""
SETTLE_S = 1.0
SETTLED_SHARE_MIN = 0.5
"""A settled size is at least this share of the provisional one: what else the heap lost was not this load's."""


@dataclass(slots=True)
class Resident:
    """A model in memory. `size_bytes` is provisional until it is `measured`."""

    model: LoadedModel
    size_bytes: int
    measured: bool
    loaded_at_s: float
    drift_base_bytes: int
    """Heap in use beyond all known sizes when the load ended; what it sinks by later was never the model's."""


class Residents:
    """All models by handle. Loads come from one thread, unloads from another, look-ups from a third."""

    def __init__(self) -> None:
        self.quiet = threading.Lock()
        """Held while a batch runs: who holds it sees a heap without the temporary memory of batches."""
        self.turn = threading.Lock()
        """Taken and given back before each batch: who waits for `quiet` holds it, and so is next."""
        self.batches = 0
        self._by_handle: dict[int, Resident] = {}
        self._freed_bytes = 0
        self._measuring = False
        """Whether a load is being measured, one at a time: only then an unload has to be, too."""
        self._loosened_bytes = 0
        """Unloaded since the free pages were last looked at."""
        self._known_bytes = 0
        self._lock = threading.Lock()
        self._imported: set[str] = set()
        self._loaded: set[str] = set()
        self._collector = _Collector()
        self._untrimmable_bytes = 0
        self._slack_max_bytes = SLACK_BYTES_MAX
        self._next_trim_at_s = 0.0
        self._trim()

    def get(self, handle: int) -> LoadedModel | None:
        """The model of a handle; None when it was freed."""
        resident = self._by_handle.get(handle)
        return None if resident is None else resident.model

    def import_format(self, name: str) -> None:
        """Import a framework, once. Raises LoadFailed."""
        format = format_named(name)
        if name in self._imported:
            return
        try:
            format.import_framework()
        except ImportError as error:
            raise missing_extra(format, error) from error
        self._imported.add(name)
        gc.collect()
        gc.freeze()
        self._trim()

    def load(self, command: Load) -> LoadDone | Changed:
        """Load a model and measure it. Raises LoadFailed, MemoryError."""
        format = format_named(command.format)
        artefact = read_artefact(command.path)
        if command.fingerprint and artefact.fingerprint() != command.fingerprint:
            return Changed()
        name = format.pick(artefact.names)
        if name is None:
            raise LoadFailed(f"The model's file vanished from {artefact.folder}.", code=Code.NOT_FOUND)
        path = artefact.folder / name
        if command.content and command.size_bytes and format.name in self._loaded:
            return self._load_known(command, format, path)
        modules, base_bytes = len(sys.modules), 0
        with self._measuring_loads():
            load = _measured_load(self, format, path)
            sets_up = len(sys.modules) > modules or format.name not in self._loaded
            if sets_up and load.seconds < RELOAD_S_MAX:
                load.model, with_base_bytes = None, load.size_bytes
                load = _measured_load(self, format, path)
                base_bytes = max(0, with_base_bytes - load.size_bytes)
        self._loaded.add(format.name)
        assert load.model is not None
        try:
            content = command.content or artefact.content()
        except OSError as error:
            raise unreadable(artefact.folder, error) from error
        size_bytes = max(load.size_bytes, SIZE_BYTES_MIN)
        with self._lock:
            self._known_bytes += size_bytes
            drift = load.after_bytes - self._known_bytes
            self._by_handle[command.handle] = Resident(
                load.model, size_bytes, load.undisturbed, time.monotonic(), drift
            )
        return LoadDone(
            size_bytes=size_bytes,
            peak_bytes=max(load.peak_bytes, size_bytes),
            file_bytes=load.file_bytes,
            measured=load.undisturbed,
            load_s=load.seconds,
            content=content,
            base_bytes=base_bytes,
            sizing_s=load.sizing_s,
        )

    @contextlib.contextmanager
    def _measuring_loads(self) -> Iterator[None]:
        """What is unloaded meanwhile is counted in `freed_bytes`."""
        with self._lock:
            self._measuring = True
        try:
            yield
        finally:
            with self._lock:
                self._measuring = False

    def _load_known(self, command: Load, format: Format, path: Path) -> LoadDone:
        """Load what was measured before. Reading the heap costs more than loading a small model."""
        started_s = time.perf_counter()
        model = format.load(path)
        seconds = time.perf_counter() - started_s
        gc.collect()
        gc.freeze()
        size_bytes = max(command.size_bytes, SIZE_BYTES_MIN)
        with self._lock:
            self._known_bytes += size_bytes
            self._by_handle[command.handle] = Resident(model, size_bytes, True, time.monotonic(), 0)
        return LoadDone(
            size_bytes=size_bytes,
            peak_bytes=0,
            file_bytes=0,
            measured=True,
            load_s=seconds,
            content=command.content,
            base_bytes=0,
            sizing_s=0.0,
        )

    def free(self, handle: int) -> None:
        """Forget a model and its memory. Pages go back to the system with the next `tidy`."""
        with self._lock:
            resident = self._by_handle.pop(handle, None)
            if resident is None:
                return
            self._known_bytes -= resident.size_bytes
            self._loosened_bytes += resident.size_bytes
            measuring = self._measuring
        try:
            watch = weakref.ref(resident.model.owned())
        except TypeError:
            watch = weakref.ref(resident.model)
        before_bytes, size_bytes = memory.heap_bytes() if measuring else 0, resident.size_bytes
        del resident
        if watch() is not None:
            self._collector.wanted = True
        self._collector.run_if_due()
        with self._lock:
            if measuring:
                self._freed_bytes += max(0, before_bytes - memory.heap_bytes())
            elif self._measuring:
                self._freed_bytes += size_bytes
        self._trim_if_due()

    def settle(self) -> dict[int, int]:
        """Handles and sizes of the provisionally measured models that can be told now: what the heap shrank by since
        was temporary memory of the batches that ran beside the load."""
        now_s = time.monotonic()
        settled: dict[int, int] = {}
        in_use_bytes = self.in_use_bytes()
        with self._lock:
            for handle, resident in self._by_handle.items():
                if resident.measured or now_s - resident.loaded_at_s < SETTLE_S:
                    continue
                shrunk_bytes = min(0, in_use_bytes - self._known_bytes - resident.drift_base_bytes)
                least_bytes = max(int(resident.size_bytes * SETTLED_SHARE_MIN), SIZE_BYTES_MIN)
                size_bytes = max(resident.size_bytes + shrunk_bytes, least_bytes)
                self._known_bytes += size_bytes - resident.size_bytes
                resident.size_bytes, resident.measured = size_bytes, True
                settled[handle] = size_bytes
        return settled

    def in_use_bytes(self) -> int:
        """The heap in use, read while no batch runs."""
        with self.turn, self.quiet:
            return memory.heap_bytes()

    def anon_bytes(self) -> int:
        """The process's own memory, read while no batch runs."""
        with self.turn, self.quiet:
            return memory.resident().anon_bytes

    def slack_bytes(self) -> int:
        """Free pages kept since the last trim; what that could not give back is not counted again."""
        return self.slack_beside(memory.resident().anon_bytes, memory.heap_bytes())

    def slack_beside(self, anon_bytes: int, in_use_bytes: int) -> int:
        """The same by readings that were taken already."""
        return max(0, anon_bytes - in_use_bytes - self._untrimmable_bytes)

    def tidy(self, slack_max_bytes: int) -> None:
        """Collect garbage that was left for later, and give pages back when more than `slack_max_bytes` are free; from now
        on also after each unload that leaves more."""
        self._slack_max_bytes = slack_max_bytes
        self._collector.run_if_due()
        if self.slack_bytes() > slack_max_bytes:
            self._trim()

    def _trim_if_due(self) -> None:
        """Free pages are looked at once what was unloaded may have left enough of them. Where it may have left more than may
        be kept, the share of the time does not count: an unload is answered when its memory is given back."""
        started_s = time.monotonic()
        throttled = started_s < self._next_trim_at_s and self._loosened_bytes <= self._slack_max_bytes
        if throttled or self._loosened_bytes < self._slack_max_bytes * LOOK_SHARE:
            return
        self._loosened_bytes = 0
        if self.slack_bytes() <= self._slack_max_bytes:
            return
        self._trim()
        ended_s = time.monotonic()
        self._next_trim_at_s = ended_s + (ended_s - started_s) / TRIM_SHARE_MAX

    def _trim(self) -> None:
        """Python's free lists and its cache of attribute names keep small pieces of many pages, which glibc cannot give back
        then: they are emptied first (half of the pages of an unloaded forest hung on them)."""
        gc.collect()
        sys._clear_type_cache()
        memory.trim()
        self._untrimmable_bytes = max(0, memory.resident().anon_bytes - memory.heap_bytes())

    @property
    def freed_bytes(self) -> int:
        """What unloads have given back so far, as measured: the heap fell by that beside the loads of the time."""
        return self._freed_bytes


@dataclass(slots=True)
class _MeasuredLoad:
    model: LoadedModel | None
    size_bytes: int
    peak_bytes: int
    file_bytes: int
    after_bytes: int
    seconds: float
    sizing_s: float
    undisturbed: bool


FILE_BYTES_MIN = 1 << 20
"""Smaller growth of mapped files is not looked into: it is a library's pages being touched."""


def _measured_load(residents: Residents, format: Format, path: Path) -> _MeasuredLoad:
    """Load between two readings of the heap, each taken while no batch runs. The peak counts the free pages the load may have
    used, as far as its format is known to need them."""
    began_s = time.perf_counter()
    gc.collect()
    before_bytes = residents.in_use_bytes()
    batches, freed_bytes = residents.batches, residents.freed_bytes
    memory.reset_peak()
    before = memory.resident()
    slack_bytes = residents.slack_beside(before.anon_bytes, before_bytes)
    started_s = time.perf_counter()
    model = format.load(path)
    seconds = time.perf_counter() - started_s
    after = memory.resident()
    gc.collect()
    after_bytes = residents.in_use_bytes()
    gc.freeze()
    file_bytes = 0
    if after.file_bytes - before.file_bytes >= FILE_BYTES_MIN:
        file_bytes = memory.mapped_bytes(path.parent)
    freed_bytes = residents.freed_bytes - freed_bytes
    size_bytes = max(0, after_bytes - before_bytes + freed_bytes) + file_bytes
    grown_bytes = max(0, after.peak_bytes - before.all_bytes)
    return _MeasuredLoad(
        model=model,
        size_bytes=size_bytes,
        peak_bytes=max(
            grown_bytes, min(grown_bytes + slack_bytes, int(size_bytes * format.hints.peak_factor))
        ),
        file_bytes=file_bytes,
        after_bytes=after_bytes,
        seconds=seconds,
        sizing_s=time.perf_counter() - began_s - seconds,
        undisturbed=residents.batches == batches and freed_bytes == 0,
    )


class _Collector:
    """Full garbage collections, only when an unloaded model survived its last reference, and at a bounded cost.

    Loaded models are frozen (`gc.freeze`), so that ordinary collections never walk them."""

    def __init__(self) -> None:
        self.wanted = False
        self._next_at_s = 0.0

    def run_if_due(self) -> None:
        started_s = time.monotonic()
        if not self.wanted or started_s < self._next_at_s:
            return
        self.wanted = False
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        ended_s = time.monotonic()
        self._next_at_s = ended_s + (ended_s - started_s) / COLLECT_SHARE_MAX
