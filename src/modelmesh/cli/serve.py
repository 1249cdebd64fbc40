"""`serve`: start an instance, say where it listens, and stop it cleanly.

The first signal (SIGTERM, Ctrl-C) finishes what is in flight within the grace period, the second stops at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelmesh.cli import logs
from modelmesh.cli.exits import CommandFailed, Exit
from modelmesh.errors import ModelMeshError, SettingsError
from modelmesh.settings.sizes import format_size
from modelmesh.settings.sources import read_settings
from modelmesh.settings.tree import Settings

if TYPE_CHECKING:
    from modelmesh.instance.instance import Instance
    from modelmesh.ops.parts import Listening
    from modelmesh.ops.server import OpsServer

_log = logging.getLogger("modelmesh")


def serve(
    folder: Annotated[
        str | None, typer.Argument(help="Folder of models; a model's name is its folder's.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What the workers may use: 500MiB, 2GB, or a share. Default: 60%.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Worker processes. Default: by cores and memory.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    grpc_port: Annotated[str | None, typer.Option(help="gRPC. 0: any free port. Default: 8033.")] = None,
    rest_port: Annotated[str | None, typer.Option(help="REST. 0: any free port. Default: 8008.")] = None,
    ops_port: Annotated[
        str | None, typer.Option(help="Health, metrics, admin. 0: any free port. Default: 8089.")
    ] = None,
    message_max: Annotated[
        str | None, typer.Option(help="Largest request or answer. Default: 16MiB.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="Folder of the registry, or memory.", metavar="PATH|memory")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.", metavar="FILE")] = None,
    ready_file: Annotated[
        str | None, typer.Option(help="Written once ready, removed at exit.", metavar="PATH")
    ] = None,
    model_root: Annotated[
        str | None, typer.Option(help="Where registered paths must lie. Default: FOLDER.", metavar="DIR")
    ] = None,
    grace: Annotated[str | None, typer.Option(help="Seconds a stop may take. Default: 30.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, console or json.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    journal_file: Annotated[
        str | None, typer.Option(help="Gets the journal as lines of JSON.", metavar="FILE")
    ] = None,
) -> None:
    """Serve a folder of models, or models registered while running."""
    flags = {
        "folder": folder,
        "memory": memory,
        "workers": workers,
        "host": host,
        "grpc_port": grpc_port,
        "rest_port": rest_port,
        "ops_port": ops_port,
        "message_max": message_max,
        "state": state,
        "ready_file": ready_file,
        "model_root": model_root,
        "grace": grace,
        "log_format": log_format,
        "log_level": log_level,
        "journal_file": journal_file,
    }
    try:
        settings = read_settings(flags, config=config)
        logs.configure(settings.logs)
        asyncio.run(run(settings))
    except SettingsError as error:
        raise CommandFailed(str(error), Exit.NOT_STARTED) from error


async def run(settings: Settings) -> None:
    """Serve until a signal comes. Raises CommandFailed when it cannot start, or when a bug ends it."""
    signals = _Signals()
    from modelmesh.instance.instance import Instance
    from modelmesh.ops.server import OpsServer

    ops = OpsServer(settings.network.host, settings.network.ops_port)
    instance = Instance(settings, [_management, lambda started: _ops(started, ops)])
    try:
        await _until_signal(instance, signals, lambda: _listening(instance, ops))
    except ModelMeshError as error:
        raise CommandFailed(str(error), Exit.NOT_STARTED) from error
    finally:
        await _stop(instance, signals)
        await ops.stop()


class _Signals:
    """SIGTERM and SIGINT, counted."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def _until_signal(instance: Instance, signals: _Signals, listening: Callable[[], Listening]) -> None:
    if not await _unless(signals.first, instance.start()):
        return
    ready_file = instance.settings.lifecycle.ready_file
    if ready_file is not None:
        from modelmesh.instance.ready_file import remove_ready_file, write_ready_file

        grpc, rest, ops = listening()
        write_ready_file(ready_file, grpc=grpc, rest=rest, ops=ops)
    try:
        async with asyncio.TaskGroup() as group:
            greeting = group.create_task(_greet(instance, listening()), name="greeting")
            await _unless(signals.first, instance.wait())
            greeting.cancel()
    finally:
        if ready_file is not None:
            remove_ready_file(ready_file)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` unless the event happens first; False when it did, and the work was cancelled."""
    working = asyncio.create_task(work)
    waiting = asyncio.create_task(event.wait(), name="signal")
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if working.done():
        working.result()
        return True
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    return False


async def _stop(instance: Instance, signals: _Signals) -> None:
    """Within the grace period; at once on a second signal."""
    if signals.first.is_set():
        _log.info(
            "Stopping: requests in flight have %g s. A second signal stops at once.",
            instance.settings.lifecycle.grace_s,
        )
    await _unless(signals.second, instance.stop())
    await instance.stop()


@asynccontextmanager
async def _management(instance: Instance) -> AsyncIterator[None]:
    from modelmesh.management.server import ControlServer

    server = ControlServer(instance.control_socket, instance.settings.network.message_bytes_max)
    await server.start(instance.mesh)
    try:
        yield
    finally:
        await server.stop()


@asynccontextmanager
async def _ops(instance: Instance, server: OpsServer) -> AsyncIterator[None]:
    from modelmesh.instance.model_root import ModelRoot
    from modelmesh.ops.parts import Parts

    folder = instance.settings.models.folder
    await server.start(
        Parts(
            control=instance.mesh,
            relay=instance.dataplane,
            measures=instance.mesh.measures,
            admit=ModelRoot(instance.settings.models.model_root).admit,
            drain=instance.drain,
            listening=lambda: _listening(instance, server),
            oldest_use_wall_s=instance.mesh.oldest_use_wall_s,
            clock=instance.clock,
            folder=str(folder or ""),
            budget_bytes=instance.settings.memory.budget_bytes,
        )
    )
    try:
        yield
    finally:
        await server.stop()


def _listening(instance: Instance, ops: OpsServer) -> Listening:
    from modelmesh.ops.parts import Listening

    addresses = instance.addresses
    return Listening(
        grpc=addresses.grpc,
        rest=f"http://{addresses.rest}" if addresses.rest else "",
        ops=f"http://{ops.address}",
    )


async def _greet(instance: Instance, listening: Listening) -> None:
    """What a person wants to know first, on stdout."""
    from modelmesh.cli.curl import curl_line

    settings, view = instance.settings, instance.mesh.instance()
    what = f"{view.models_registered} models" if view.models_registered else "no models yet"
    where = f" from {settings.models.folder}" if settings.models.folder else ""
    _say(
        f"Serving {what}{where} with {settings.memory.workers} workers in {format_size(settings.memory.budget_bytes)}.",
        f"  REST  {listening.rest}",
        f"  gRPC  {listening.grpc}",
        f"  ops   {listening.ops}  (admin API and its docs, /metrics, /ready)",
    )
    first = instance.mesh.models(limit=1).models
    if first:
        name = first[0].names[0] if first[0].names else first[0].id
        line = await asyncio.to_thread(curl_line, listening.rest, name)
        _say("Try:", f"  {line}")
    else:
        _say("Register one:", "  modelmesh register ID --type FORMAT --path PATH")
    _say("Ctrl-C stops it.")


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
