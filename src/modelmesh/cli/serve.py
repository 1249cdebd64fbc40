"""`serve`: start an instance, say where it listens, and stop it cleanly.

The first signal (SIGTERM, Ctrl-C) finishes what is in flight within the grace period, the second stops at once. Its arguments
are read by argparse: typer brings pydantic along, which would make up half of the start and of an idle instance's memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelmesh.cli import logs
from modelmesh.cli.exits import CommandFailed, Exit
from modelmesh.cli.quantities import counted
from modelmesh.errors import ModelMeshError, SettingsError
from modelmesh.instance.termination_message import leave_message, message_path
from modelmesh.ops.ports import Ports
from modelmesh.settings import predecessor
from modelmesh.settings.sizes import format_size
from modelmesh.settings.sources import described, read_settings
from modelmesh.settings.tree import Settings

if TYPE_CHECKING:
    from modelmesh.instance.instance import Instance
    from modelmesh.ops.parts import Listening

_TRIED_FOR_CURL: Final = 5
SAYS: Final = "Serve a folder of models, or models registered while running."
_log = logging.getLogger("modelmesh")


def serve(arguments: Sequence[str]) -> None:
    """Serve a folder of models, or models registered while running. Returns after a clean stop."""
    flags = vars(parser().parse_args(arguments))
    config = flags.pop("config")
    settings = None
    try:
        settings = read_settings(flags, config=config)
        logs.configure(settings.logs)
        for sentence in predecessor.ignored(os.environ):
            _log.info("%s", sentence)
        asyncio.run(run(settings))
    except SettingsError as error:
        leave_message(str(error), message_path(settings, flags))
        raise CommandFailed(str(error), Exit.NOT_STARTED) from error
    except CommandFailed as failure:
        leave_message(str(failure), message_path(settings, flags))
        raise


def parser() -> ArgumentParser:
    """A flag per setting, made from the settings' own tree. Values are checked there, so that all sources complain alike."""
    made = ArgumentParser("modelmesh serve", description=SAYS, allow_abbrev=False)
    for _, setting in described():
        says = (setting.says + (f" Default: {setting.default}." if setting.default else "")).replace(
            "%", "%%"
        )
        if setting.name == "folder":
            made.add_argument("folder", metavar="FOLDER", nargs="?", help=says)
        else:
            action = "append" if setting.several else "store"
            made.add_argument(
                f"--{setting.name.replace('_', '-')}", metavar=setting.metavar, help=says, action=action
            )
    made.add_argument(
        "--config", metavar="FILE", type=Path, help="TOML file with settings, by the same names."
    )
    return made


async def run(settings: Settings) -> None:
    """Serve until a signal comes. Raises CommandFailed when it cannot start, or when a bug ends it."""
    signals = _Signals()
    ports = Ports(settings)
    from modelmesh.instance.instance import Instance

    instance = Instance(settings, [_management, lambda started: _ops(started, ports)])
    try:
        try:
            await _until_signal(instance, signals, lambda: _listening(instance, ports))
        finally:
            await _stop(instance, signals)
            ports.close()
    except ModelMeshError as error:
        raise CommandFailed(str(error), Exit.NOT_STARTED) from error
    except Exception as error:
        _log.critical("A bug ended the instance.", exc_info=error)
        raise CommandFailed(
            "A bug of ours ended the instance; please report it with the log above.", Exit.CRASHED
        ) from error


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

        grpc, rest, ops, _ = listening()
        peer = "" if instance.peers is None else instance.peers.me.address
        write_ready_file(ready_file, grpc=grpc, rest=rest, ops=ops, peer=peer)
    greeting = asyncio.create_task(_greet(instance, listening()), name="greeting")
    try:
        await _unless(signals.first, instance.wait())
    finally:
        greeting.cancel()
        await asyncio.wait({greeting})
        if not greeting.cancelled() and (error := greeting.exception()):
            _log.error("The greeting failed: %s", error, exc_info=error)
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
            instance.grace_s,
        )
    await _unless(signals.second, instance.stop())
    await instance.stop()


@asynccontextmanager
async def _management(instance: Instance) -> AsyncIterator[None]:
    await _import("google.protobuf.message", "grpc", "grpc.aio", "modelmesh.management.inference")
    from modelmesh.management.server import ControlServer

    more = []
    if instance.peers is not None:
        from modelmesh.management import peers

        more.append(peers.service(instance.peers))
    server = ControlServer(
        instance.control_socket, instance.settings.network.message_bytes_max, instance.admit, more
    )
    await server.start(instance.mesh)
    try:
        yield
    finally:
        await server.stop()


@asynccontextmanager
async def _ops(instance: Instance, ports: Ports) -> AsyncIterator[None]:
    await _import("starlette.applications", "uvicorn", "modelmesh.ops.app", "modelmesh.ops.server")
    from modelmesh.ops.parts import Parts

    folder = instance.settings.models.folder
    metrics = instance.settings.metrics
    parts = Parts(
        control=instance.mesh,
        relay=instance.dataplane,
        live=instance.live,
        measures=instance.mesh.measures,
        admit=instance.admit,
        drain=instance.drain,
        ended=instance.ended,
        listening=lambda: _listening(instance, ports),
        oldest_use_wall_s=instance.mesh.oldest_use_wall_s,
        clock=instance.clock,
        folder=str(folder or ""),
        budget_bytes=instance.settings.memory.budget_bytes,
        export=metrics.export,
        info_metric=metrics.info,
        log_scrapes=metrics.log_scrapes,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(ports.serving(parts, instance.journal))
        if parts.export.statsd is not None:
            from modelmesh.ops.statsd import sending

            await stack.enter_async_context(sending(parts, parts.export.statsd))
        yield


async def _import(*modules: str) -> None:
    """Import them one by one, so that the loop can go on starting workers in between. (A thread would leave it free altogether,
    at the price of an arena of its own: some 6 MiB for good.)"""
    for module in modules:
        import_module(module)
        await asyncio.sleep(0)


def _listening(instance: Instance, ports: Ports) -> Listening:
    from modelmesh.ops.parts import Listening

    addresses = instance.addresses
    scheme = "http" if instance.settings.edges.tls_cert is None else "https"
    return Listening(
        grpc=addresses.grpc,
        rest=f"{scheme}://{addresses.rest}" if addresses.rest else "",
        ops=ports.ops,
        others=ports.others,
    )


async def _greet(instance: Instance, listening: Listening) -> None:
    """What a person wants to know first, on stdout."""
    from modelmesh.cli.curl import Door, curl_line
    from modelmesh.mesh.control import Query

    settings, view = instance.settings, instance.mesh.instance()
    what = counted(view.models_registered, "model") if view.models_registered else "no models yet"
    where = f" from {settings.models.folder}" if settings.models.folder else ""
    _say(
        f"Serving {what}{where} with {_runtimes(settings)}.",
        f"  REST  {listening.rest}",
        f"  gRPC  {listening.grpc}{' (TLS)' if settings.edges.tls_cert else ''}",
        f"  ops   {listening.ops}  (admin API and its docs, /metrics, /ready)",
        *(f"  {name}  {url}" for name, url in listening.others.items()),
        *_neighbours(instance),
    )
    first = (await instance.mesh.models(Query(limit=_TRIED_FOR_CURL))).models
    if first:
        names = [model.names[0] if model.names else model.id for model in first]
        certificate = settings.edges.tls_cert
        door = Door(
            listening.rest,
            certificate=None if certificate is None else str(certificate),
            asks_certificate=settings.edges.tls_client_auth == "require",
        )
        line = await curl_line(door, names)
        _say("Try:", f"  {line}")
    else:
        _say("Register one:", "  modelmesh register ID --type FORMAT --path PATH")
    _say("Ctrl-C stops it.")


def _neighbours(instance: Instance) -> list[str]:
    """Where others reach it, and how many there are."""
    if instance.peers is None or instance.mesh.fleet is None:
        return []
    n, service = len(instance.mesh.fleet), instance.settings.state.service
    return [
        f"  peer  {instance.peers.me.address}  (instance {instance.peers.me.id} of {service}, "
        f"with {counted(n, 'other') if n else 'no other yet'})"
    ]


def _runtimes(settings: Settings) -> str:
    """The runtimes in the words of the greeting."""
    workers = f"{counted(settings.memory.workers, 'worker')} in {format_size(settings.memory.budget_bytes)}"
    return ", ".join(
        workers if choice.is_builtin else f"the runtime at {' or '.join(choice.addresses)}"
        for choice in settings.runtimes.chosen
    )


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
