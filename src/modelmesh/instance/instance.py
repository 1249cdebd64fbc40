"""One instance: its parts built from settings, started, and stopped in the reverse order.

The order is that of `start`, kept on two exit stacks: what is entered later may use what was entered before, and is stopped
first. Faces (ops port, management calls) are handed in, because they lie above this room.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from modelmesh import __version__
from modelmesh.clock import LoopClock
from modelmesh.dataplane.protocol import Addresses, DataPlane, DataPlaneConfig
from modelmesh.instance.background import beside
from modelmesh.instance.edges import payload_consumers, prepare
from modelmesh.instance.journal_sinks import JournalFile, log_entry
from modelmesh.instance.live_settings import LiveSettings
from modelmesh.instance.model_root import ModelRoot
from modelmesh.instance.runtime_dir import RuntimeDir
from modelmesh.instance.runtimes import admission, build_runtimes, load_timeout_s
from modelmesh.instance.static_models import read_static_models, register_static_models
from modelmesh.instance.type_constraints import TypeConstraints, parse_constraints
from modelmesh.journal import Did, Entry, Journal
from modelmesh.mesh.control import Admit
from modelmesh.mesh.mesh import Mesh
from modelmesh.mesh.naming.coexistence import Coexistence
from modelmesh.mesh.naming.folder import FolderKeeper
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.mesh.tuning import Tuning
from modelmesh.registry.mirror import Mirror
from modelmesh.settings.machine import cores
from modelmesh.settings.tree import Settings
from modelmesh.storage.folder import FolderScanner
from modelmesh.store.protocol import Store

if TYPE_CHECKING:
    from modelmesh.instance.peering import Neighbours
    from modelmesh.peers.connected import ConnectedPeers
    from modelmesh.store.etcd_connection import EtcdConnection

_log = logging.getLogger("modelmesh")

_PARK_BEYOND_LOAD_S: Final = 30.0
"""A request without a deadline waits as long as a load may take, and this much more."""
_PARKED_BYTES_MIN: Final = 64 << 20
_PARKED_SHARE: Final = 0.05
_MODEL_SERIES_MAX: Final = 250
"""A scrape of that many models is about 5 MB of text, and takes a second to write."""
_LOOPS_MAX: Final = 4
"""Loops of the relay: half the cores, since the workers need the others; one moves 100,000 requests per second."""

Face = Callable[["Instance"], AbstractAsyncContextManager[object]]
"""Serves while entered. Entered before the instance is ready, left after it stopped."""


class Instance:
    """Built from settings by `start`; `stop` undoes it, also when the start failed half-way. One owner, one event loop."""

    mesh: Mesh
    dataplane: DataPlane
    journal: Journal
    clock: LoopClock
    control_socket: Path
    peers: ConnectedPeers | None = None
    """The other instances; None: it is alone."""
    live: LiveSettings
    """Settings that the store may change."""
    admit: Admit
    """Checks what is to be registered. Reads the disk, so it belongs into a thread."""

    def __init__(self, settings: Settings, faces: Sequence[Face] = ()) -> None:
        self.settings = settings
        self.addresses = Addresses(grpc="", rest="")
        self._faces = faces
        self._stack = AsyncExitStack()
        """What the mesh needs to end well: store, faces, data plane. Closed after it."""
        self._serving = AsyncExitStack()
        """The mesh with its runtime and folder, whose start is the longest: begun first, ended first."""
        self.grace_s = settings.lifecycle.grace_s
        """How long a stop may take."""
        self._drained: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._keeper: FolderKeeper | None = None
        self._following = False

    async def start(self) -> None:
        """Returns when ready: the store is read, the workers run, the folder has been looked through. Raises SettingsError,
        StoreUnavailable, RuntimeUnavailable, or FailedPrecondition for a static model that cannot be had, with a sentence;
        what had been started is stopped by `stop`."""
        settings, stack = self.settings, self._stack
        static_models = read_static_models(settings.models)
        self.clock = LoopClock()
        self.journal = Journal(self.clock, sink=self._journal_sink())
        runtime_dir = RuntimeDir()
        stack.callback(runtime_dir.remove)
        self.control_socket = runtime_dir.path / "control.sock"

        connection = _connection(settings)
        store = _build_store(settings, connection)
        stack.push_async_callback(store.close)
        await store.open()
        registrar = Registrar(
            store,
            Mirror(report=self._unreadable),
            self.clock,
            self.journal,
            read_only=settings.state.read_only,
        )
        stack.push_async_callback(registrar.stop)
        self.live = LiveSettings(store, self.journal, lambda: registrar.refuses)
        await self.live.read()
        await stack.enter_async_context(beside(self.live.follow(), "settings in the store"))
        if settings.state.store is not None:
            coexistence = Coexistence(store, registrar, self.journal)
            stack.push_async_callback(coexistence.stop)
            await coexistence.start()
        await registrar.start()
        if registrar.read_only:
            static_models = []

        root = ModelRoot(settings.models.model_root)
        runtimes = build_runtimes(settings, runtime_dir.path, root)
        constraints = TypeConstraints(settings.runtimes)
        self.admit = admission(runtimes, root, constraints.table)
        neighbours = None
        if connection is not None:
            from modelmesh.instance.peering import Neighbours, member_of

            me = member_of(settings, [runtime.offer() for runtime in runtimes], self.clock.wall_s())
            neighbours = Neighbours(settings, store, connection.endpoints, me, runtime_dir.path)
            self.peers = neighbours.peers
        self.dataplane = _build_dataplane(settings, self.control_socket, neighbours)
        self.mesh = Mesh(
            self.dataplane,
            runtimes,
            registrar,
            self.clock,
            self.journal,
            random.Random(),
            constraints=constraints.table,
            id=self.peers.me.id if self.peers else settings.peering.instance_id or uuid.uuid4().hex[:12],
            version=__version__,
            vmodel_owner=settings.models.vmodel_owner or "",
            tuning=Tuning(
                failure_stands_s=settings.lifecycle.load_failure_expiry_s,
                model_series_max=_model_series_max(settings),
            ),
            peers=self.peers,
            fill=settings.models.fill_memory,
        )
        self.mesh.overview.orders.on_drain = self._begin_drain
        self._offer_settings(constraints)
        serving = self._serving
        for runtime in runtimes:
            serving.push_async_callback(runtime.stop, 0.0)
        serving.push_async_callback(self._stop_mesh)
        starting = asyncio.create_task(self.mesh.start(ready=False), name="start of the mesh")
        serving.push_async_callback(_cancelled, starting)

        for face in self._faces:
            await stack.enter_async_context(face(self))
        consumers = payload_consumers(settings.edges, self.dataplane)
        if consumers is not None:
            stack.push_async_callback(asyncio.to_thread, consumers.stop)
            consumers.start()
        stack.callback(self.dataplane.stop)
        edges = prepare(settings.edges, self.dataplane, self.journal)
        if neighbours is not None:
            edges += neighbours.watched(self.dataplane, self.journal)
        for watched in [*edges, *constraints.watched(self.journal)]:
            await stack.enter_async_context(beside(watched.run(), "watched files"))
        if static_models and neighbours is None:  # they are there before anybody can ask
            await self._begin(starting)
            await register_static_models(self.mesh, static_models, self.admit, self.clock)
        self.addresses = self.dataplane.start()
        if neighbours is not None:
            neighbours.open_at(self.addresses.peer)
            await self._begin(starting)
            neighbours.check_folder()
            # One of the others may load them, so these had to be met first.
            await register_static_models(self.mesh, static_models, self.admit, self.clock)
        if settings.models.folder is not None:
            self._keeper = FolderKeeper(
                _scanner(settings.models.folder),
                self.mesh.vmodel_calls,
                self.mesh,
                self.journal,
                self.mesh.redirect,
            )
            serving.push_async_callback(self._keeper.stop)
            await self._keeper.start()
        await self._begin(starting)
        self.mesh.be_ready()

    def _offer_settings(self, constraints: TypeConstraints) -> None:
        """What the store may change from now on."""
        settings, live = self.settings, self.live
        live.offer("log_level", _log_from, settings.logs.level)
        live.offer("grace", self._set_grace, settings.lifecycle.grace_s)
        live.offer("load_failure_expiry", self.mesh.failures_stand, settings.lifecycle.load_failure_expiry_s)
        live.offer(
            "type_constraints",
            constraints.store_says,
            None,
            started=constraints.started,
            parse=lambda text: parse_constraints(text, "type_constraints"),
        )

    def _set_grace(self, grace_s: float) -> None:
        self.grace_s = grace_s

    async def wait(self) -> None:
        """Return when the mesh ends by itself; raises the bug that ended it."""
        await self.mesh.wait()

    async def drain(self) -> None:
        """Be not ready, take no more requests, and return when those in flight are done or the grace period is over."""
        await asyncio.shield(self._begin_drain())

    def _begin_drain(self) -> asyncio.Task[None]:
        if self._drained is None:
            self._drained = asyncio.create_task(self._drain(), name="drain")
        return self._drained

    async def _drain(self) -> None:
        await self.mesh.drain(self.grace_s)
        self._ended.set()

    async def ended(self) -> bool:
        """Wait until nothing is in flight any more and nothing will be; False when twice the grace period went by without that.
        Begins nothing."""
        try:
            async with asyncio.timeout(2 * self.grace_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Finish what is in flight within the grace period, then stop everything in the reverse order of the start. Cancelled, it
        stops everything at once. Idempotent."""
        try:
            await self._serving.aclose()
        finally:
            await self._stack.aclose()

    async def _stop_mesh(self) -> None:
        try:
            if self._drained is not None:
                await asyncio.wait({self._drained})
            await self.mesh.stop(self.grace_s)
        finally:
            self._ended.set()

    async def _begin(self, starting: asyncio.Task[None]) -> None:
        """The mesh has started: from now on it hears what happens in the data plane. Idempotent."""
        await starting
        if self._following:
            return
        self._following = True
        loop, descriptor = asyncio.get_running_loop(), self.dataplane.fileno()
        self._stack.callback(loop.remove_reader, descriptor)
        loop.add_reader(descriptor, self._handle_events)

    def _handle_events(self) -> None:
        self.mesh.handle_events(self.dataplane.take_events())

    def _journal_sink(self) -> Callable[[Entry], None]:
        path = self.settings.logs.journal_file
        file = None if path is None else JournalFile(path)
        if file is not None:
            self._stack.callback(file.close)

        def sink(entry: Entry) -> None:
            log_entry(entry)
            if file is not None:
                file.append(entry)
            if entry.did is Did.LOAD_FAILED and self._keeper is not None:
                self._keeper.load_failed(entry.model)

        return sink

    def _unreadable(self, id: str, sentence: str) -> None:
        self.journal.record(Did.WARNED, id, sentence)


def _log_from(level: str) -> None:
    _log.setLevel(level.upper())


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Ended, whatever it was at; what it raised was raised where it was awaited, or is not the first thing that went wrong."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _scanner(folder: Path) -> FolderScanner:
    from modelmesh.runtime.detect import guess, why_no_model

    return FolderScanner(folder, guess, why_no_model)


def _connection(settings: Settings) -> EtcdConnection | None:
    """To the store that is shared; None: this machine has one of its own."""
    if settings.state.store is None:
        return None
    from modelmesh.store.etcd_connection import read_connection

    return read_connection(settings.state.store)


def _build_store(settings: Settings, connection: EtcdConnection | None) -> Store:
    state = settings.state
    if connection is not None:
        from modelmesh.store.etcd import EtcdStore

        return EtcdStore(connection, connection.keys_of(state.store_prefix, state.service or ""))
    if state.path is None:
        from modelmesh.store.memory import MemoryStore

        return MemoryStore()
    from modelmesh.store.sqlite import SQLiteStore

    return SQLiteStore(state.path / "registry.sqlite")


def _model_series_max(settings: Settings) -> int:
    return _MODEL_SERIES_MAX if settings.metrics.export.per_model else 0


def _build_dataplane(
    settings: Settings, control_socket: Path, neighbours: Neighbours | None = None
) -> DataPlane:
    from modelmesh.dataplane.relay import Relay

    network = settings.network
    return Relay(
        DataPlaneConfig(
            control_socket=str(control_socket),
            host=network.host,
            grpc_port=network.grpc_port,
            rest_port=network.rest_port,
            peer_host=network.host,
            peer_port=None if neighbours is None else settings.peering.port,
            peer_tls=None if neighbours is None else neighbours.tls,
            threads=max(1, min(_LOOPS_MAX, cores() // 2)),
            message_bytes_max=network.message_bytes_max,
            header_bytes_max=network.header_bytes_max,
            parked_bytes_max=max(_PARKED_BYTES_MIN, int(settings.memory.budget_bytes * _PARKED_SHARE)),
            park_timeout_ms=round((load_timeout_s(settings) + _PARK_BEYOND_LOAD_S) * 1000),
            multi_parallelism=settings.edges.multi_parallelism,
            pass_credentials=settings.edges.pass_credentials,
            connection_age_ms=round((network.connection_age_s or 0) * 1000),
            connection_age_grace_ms=round((network.connection_age_grace_s or 0) * 1000),
            model_series_max=_model_series_max(settings),
            told_headers=settings.logs.request_headers or (),
        )
    )
