"""A served folder: what the scanner finds becomes concrete, immutable models behind vmodels that follow every change.

The model found as `iris` is the vmodel `iris`, pointing at the model `iris@<fingerprint>`. A change on disk is another
fingerprint, so another model, to which the vmodel moves by an ordinary transition. With versions there is a vmodel per
version, and the bare name follows the highest that loads. Only vmodels owned by the folder are ever touched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from modelmesh.errors import ModelMeshError, StoreUnavailable
from modelmesh.journal import Did, Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming.transitions import Loader
from modelmesh.mesh.naming.vmodel_rules import Setting
from modelmesh.mesh.naming.vmodels import VModels
from modelmesh.registry.ids import VERSION, concrete_id, name_of, split_version, version_name
from modelmesh.registry.mirror import ChangedIds
from modelmesh.storage.folder import REST_S, FolderScanner, RootMissing
from modelmesh.storage.sightings import FoundModel, Sighting

OWNER: Final = "folder"
PAUSE_S: Final = 1.0
"""Between the end of one scan and the next."""
FIRST_SCANS: Final = 3
"""How often a start without earlier state looks at what is still being written before it goes on without it."""
AFTER_BUG_S: Final = 10.0
TOLD_PER_SCAN: Final = 100
"""Skipped entries named one by one; beyond that they are only counted."""
PAGE: Final = 500

T = TypeVar("T")
log = logging.getLogger(__name__)


class FolderKeeper:
    """`start` after the mirror is current; `stop` before the vmodels stop."""

    def __init__(
        self,
        scanner: FolderScanner,
        vmodels: VModels,
        loader: Loader,
        journal: Journal,
        redirect: Callable[[str, str], None],
        *,
        pause_s: float = PAUSE_S,
    ) -> None:
        """`redirect` has requests for a vmodel, also those that wait, go to a model until the vmodel's record changes."""
        self._scanner = scanner
        self._vmodels = vmodels
        self._mirror = vmodels.mirror
        self._loader = loader
        self._journal = journal
        self._redirect = redirect
        self._pause_s = pause_s
        self._versions: dict[str, tuple[str, ...]] = {}
        """Names with versions, and the concrete models of these, lowest version first."""
        self._fallen: set[str] = set()
        """Names that do not point at their highest version, because it cannot be loaded."""
        self._missing = ""
        """Why the folder cannot be scanned, when it was last tried."""
        self._deleted: set[str] = set()
        """Names whose vmodels were deleted by others; they are free for what the folder holds."""
        self._told = 0
        self._failed = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="folder-scan")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register what is new in the folder, then follow it. With models known from an earlier run only names that are new to it
        are waited for; the rest is compared in the background. Raises StoreUnavailable."""
        try:
            await self._scan_until_at_rest(await self._new_entries() if await self._owned() else None)
        except RootMissing as error:
            self._warn_missing(error)
        self._vmodels.on_change(self._changed)
        self._task = asyncio.create_task(self._follow(), name="folder")

    async def stop(self) -> None:
        """Idempotent."""
        self._scanner.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        # A scan under way ends at its next entry; a disk that hangs must not keep us from stopping.
        self._thread.shutdown(wait=False, cancel_futures=True)

    def load_failed(self, model: str) -> None:
        """A load failed. When it was a version that a bare name follows, and is broken, those that wait for that name go to the
        next version at once, before anybody is refused; the name itself is moved on soon."""
        name, version = split_version(name_of(model))
        if not version or not self._is_ours(name) or not self._loader.failure(model):
            return
        if name not in self._versions:
            self._versions[name] = self._known_versions(name)
        self._redirect(name, self._bare(name).target)
        self._failed.set()

    def _known_versions(self, name: str) -> tuple[str, ...]:
        """As the registry has them: the folder was not looked at yet."""
        versions = [(int(split_version(id)[1]), id) for id in self._names(name) if id != name]
        records = [self._mirror.vmodel(id) for _, id in sorted(versions)]
        return tuple(record.active for record in records if record is not None)

    # Scanning

    async def _follow(self) -> None:
        """Look through the folder again and again; versions that fail meanwhile are followed at once."""
        await self._carefully(self._look_through)
        await self._carefully(self._expect_known)
        while True:
            next_s = asyncio.get_running_loop().time() + self._pause_s
            while await self._failed_before(next_s):
                await self._carefully(self._follow_versions)
            await self._carefully(self._look_through)

    async def _look_through(self) -> None:
        await self._forget_deleted()
        await self._scan(gently=True)
        if self._missing:
            log.info("The folder %s is there again.", self._scanner.root)
            self._missing = ""
        await self._follow_versions()

    async def _carefully(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do it, or say why it cannot be done now."""
        try:
            await step()
        except RootMissing as error:
            self._warn_missing(error)
        except StoreUnavailable as error:
            log.warning("Changes in the folder wait for the store: %s", error)
        except Exception:
            # A format's plug-in that raises, or a bug of ours: the models served so far go on.
            log.exception("The folder %s could not be followed; it is tried again.", self._scanner.root)
            await asyncio.sleep(AFTER_BUG_S)

    async def _failed_before(self, time_s: float) -> bool:
        """Whether a version failed before that time of the loop, which is waited for."""
        try:
            async with asyncio.timeout_at(time_s):
                await self._failed.wait()
        except TimeoutError:
            return False
        self._failed.clear()
        return True

    def _changed(self, changed: ChangedIds) -> None:
        for vmodel in changed.vmodels:
            if not self._mirror.has_vmodel(vmodel):
                self._deleted.add(split_version(vmodel)[0])

    async def _forget_deleted(self) -> None:
        if self._deleted:
            names, self._deleted = self._deleted, set()
            await self._in_thread(lambda: self._scanner.forget(names))

    async def _scan_until_at_rest(self, only: Sequence[str] | None = None) -> None:
        """Scan, and look again at what is still being written, for a bounded time."""
        await self._scan(only)
        for _ in range(FIRST_SCANS - 1):
            if not (pending := self._scanner.pending):
                break
            await asyncio.sleep(REST_S)
            await self._scan(pending)

    async def _new_entries(self) -> list[str]:
        """What is in the folder and was not registered in an earlier run."""
        entries = await self._in_thread(self._scanner.entries)
        new: list[str] = []
        for start in range(0, len(entries), PAGE):
            for entry in entries[start : start + PAGE]:
                if not self._mirror.has_vmodel(entry) and not self._mirror.has_vmodel(Path(entry).stem):
                    new.append(entry)
            await asyncio.sleep(0)
        return new

    async def _scan(self, only: Sequence[str] | None = None, *, gently: bool = False) -> None:
        """Scan and take in the news, a batch ahead of what is being written."""
        self._told = 0
        scan = self._scanner.scan(only, gently=gently)
        batch = await self._next(scan)
        while batch is not None:
            ahead = asyncio.ensure_future(self._next(scan))
            try:
                await self._take_in(batch)
            finally:
                batch = await ahead
        if self._told > TOLD_PER_SCAN:
            log.warning("%d entries of %s were skipped in all.", self._told, self._scanner.root)

    async def _next(self, scan: Iterator[list[Sighting]]) -> list[Sighting] | None:
        return await self._in_thread(lambda: next(scan, None))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _warn_missing(self, error: RootMissing) -> None:
        if self._missing != str(error):
            self._missing = str(error)
            self._journal.record(Did.WARNED, "", str(error))

    # Taking in

    async def _take_in(self, sightings: Sequence[Sighting]) -> None:
        """Make the registry follow. When the store is away this waits for it: the scanner tells its news once."""
        settings: list[Setting] = []
        deletions: list[str] = []
        for sighting in sightings:
            if sighting.problem:
                self._skipped(sighting.name, sighting.problem)
            if sighting.gone:
                deletions += self._names(sighting.name)
                self._forget_versions(sighting.name)
            elif sighting.models:
                wanted = self._wanted(sighting)
                settings += [setting for setting in wanted if self._differs(setting)]
                deletions += self._superfluous(sighting, {setting.vmodel for setting in wanted})
        while True:
            try:
                await self._write(settings, deletions)
                return
            except StoreUnavailable as error:
                if self._task is None:
                    raise
                log.warning("Changes in the folder wait for the store: %s", error)
                await asyncio.sleep(self._pause_s)

    async def _write(self, settings: Sequence[Setting], deletions: Sequence[str]) -> None:
        if settings:
            answers = await self._vmodels.set_many(settings)
            for setting, answer in zip(settings, answers, strict=True):
                if isinstance(answer, ModelMeshError):
                    self._skipped(setting.vmodel, str(answer))
        if deletions:
            await self._vmodels.delete_many(deletions, owner=OWNER)

    def _wanted(self, sighting: Sighting) -> list[Setting]:
        """The vmodels a name is to have."""
        name = sighting.name
        if not sighting.models[0].version:
            self._forget_versions(name)
            return [_setting(name, name, sighting.models[0])]
        wanted = [_setting(version_name(name, found.version), name, found) for found in sighting.models]
        self._versions[name] = tuple(setting.target for setting in wanted)
        return [*wanted, self._bare(name)]

    def _bare(self, name: str) -> Setting:
        """The bare name follows the highest version that can be loaded, as far as known; if none can, the highest."""
        models = self._versions[name]
        loadable = [model for model in models if not self._loader.failure(model)]
        target = (loadable or models)[-1]
        if target == models[-1]:
            self._fallen.discard(name)
        else:
            self._fallen.add(name)
        return Setting(name, target, owner=OWNER)

    def _forget_versions(self, name: str) -> None:
        self._versions.pop(name, None)
        self._fallen.discard(name)

    def _differs(self, setting: Setting) -> bool:
        record = self._mirror.vmodel(setting.vmodel)
        return record is None or record.target != setting.target

    def _superfluous(self, sighting: Sighting, wanted: set[str]) -> list[str]:
        """Version names that have no folder any more. Versions that are there but unusable stay as they are."""
        bare = self._mirror.vmodel(sighting.name)
        if not sighting.models[0].version and (bare is None or not split_version(name_of(bare.active))[1]):
            return []
        kept = (
            wanted | {version_name(sighting.name, version) for version in sighting.unusable} | {sighting.name}
        )
        return [name for name in self._names(sighting.name) if name not in kept]

    def _names(self, name: str) -> list[str]:
        """The vmodels of the folder under a name: itself and its versions."""
        names = [
            id for id, _ in self._mirror.page_vmodels(name + VERSION, limit=0) if split_version(id)[0] == name
        ]
        return [id for id in (name, *names) if self._is_ours(id)]

    def _is_ours(self, vmodel: str) -> bool:
        record = self._mirror.vmodel(vmodel)
        return record is not None and record.owner == OWNER

    def _skipped(self, name: str, why: str) -> None:
        self._told += 1
        if self._told <= TOLD_PER_SCAN:
            self._journal.record(Did.SKIPPED, name, f"Skipped {name}: {why}")

    # What an earlier run left

    async def _owned(self) -> bool:
        """Whether the registry knows models of a folder already."""
        after = ""
        while page := self._mirror.page_vmodels(after=after, limit=PAGE):
            if any(record.owner == OWNER for _, record in page):
                return True
            after = page[-1][0]
            await asyncio.sleep(0)
        return False

    async def _expect_known(self) -> None:
        """Names that are registered but are no model now have to be missed in later scans before they count as gone."""
        after = ""
        while page := self._mirror.page_vmodels(after=after, limit=PAGE):
            after = page[-1][0]
            known: dict[str, str] = {}
            for vmodel, record in page:
                name = split_version(vmodel)[0]
                if record.owner == OWNER and not self._scanner.holds(name):
                    known[self._entry(name, record.active)] = name
            await self._in_thread(lambda known=known: self._scanner.expect(known))  # type: ignore[misc]

    def _entry(self, name: str, model: str) -> str:
        """What a name is called in the folder: its own name, or that of a file."""
        record = self._mirror.model(model)
        if record is None or VERSION in name_of(model):
            return name
        return Path(record.path).name or name

    # Versions

    async def _follow_versions(self) -> None:
        """A bare name whose version cannot be loaded moves to the next lower one, and back when the failure expired."""
        for position, name in enumerate(tuple(self._versions)):
            if position % PAGE == PAGE - 1:
                await asyncio.sleep(0)
            models = self._versions.get(name, ())
            if name not in self._fallen and (len(models) < 2 or not self._loader.failure(models[-1])):
                continue
            setting = self._bare(name)
            if not self._differs(setting):
                self._redirect(name, setting.target)  # perhaps a failure expired before the name was moved
                continue
            if why := self._loader.failure(models[-1]):
                self._journal.record(
                    Did.WARNED, name, f"{setting.target} serves, because {models[-1]} cannot be loaded: {why}"
                )
            await self._write([setting], ())


def _setting(vmodel: str, name: str, found: FoundModel) -> Setting:
    """Point a vmodel at what was found under `name`, registering it."""
    model = concrete_id(version_name(name, found.version) if found.version else name, found.fingerprint)
    return Setting(
        vmodel,
        model,
        model=Registration(model, found.type, found.path),
        auto_delete_target=True,
        owner=OWNER,
    )
