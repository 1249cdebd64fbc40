"""The built-in runtime behind two ports: one by which a mesh manages it, one for requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio

from modelmesh.adapter.models import Models
from modelmesh.adapter.requests import Requests
from modelmesh.adapter.service import services
from modelmesh.dataplane.protocol import DataPlaneConfig
from modelmesh.dataplane.relay import Relay
from modelmesh.errors import SettingsError
from modelmesh.instance.model_root import ModelRoot
from modelmesh.instance.runtime_dir import RuntimeDir
from modelmesh.instance.runtimes import LOAD_TIMEOUT_S
from modelmesh.runtime.builtin import BuiltinConfig, BuiltinRuntime
from modelmesh.runtime.worker_process import WorkerConfig
from modelmesh.settings.tree import Settings

_GRACE_S: Final = 5.0
_log = logging.getLogger("modelmesh")


@dataclass(frozen=True, slots=True)
class Serving:
    """What was bound, as "host:port"."""

    management: str
    requests: str
    following: asyncio.Task[None]
    """Ends only by a bug, which it raises."""


@asynccontextmanager
async def builtin_adapter(settings: Settings, port: int, serving_port: int) -> AsyncIterator[Serving]:
    """Serve while entered; ports 0 mean any free one. Raises SettingsError when a port is taken, RuntimeUnavailable."""
    host = settings.network.host
    async with AsyncExitStack() as stack:
        folder = RuntimeDir()
        stack.callback(folder.remove)
        root = ModelRoot(settings.models.model_root)
        runtime = BuiltinRuntime(
            BuiltinConfig(
                budget_bytes=settings.memory.budget_bytes,
                workers=WorkerConfig(
                    folder.path,
                    message_bytes_max=settings.network.message_bytes_max,
                    stuck_after_s=settings.lifecycle.inference_timeout_s,
                ),
                n_workers=settings.memory.workers,
                load_timeout_s=LOAD_TIMEOUT_S,
            )
        )
        stack.push_async_callback(runtime.stop, _GRACE_S)
        info = await runtime.start()
        relay = Relay(
            DataPlaneConfig(
                str(folder.path / "control.sock"),
                host=host,
                grpc_port=serving_port,
                rest_port=-1,
                message_bytes_max=settings.network.message_bytes_max,
            )
        )
        stack.callback(relay.stop)
        requests = Requests(relay, lambda model: models.lost(model), runtime.target_reached)
        models = Models(
            runtime,
            info,
            requests,
            root.admit,
            lambda change: relay.set_targets(change.add, change.remove),
            _log.info,
        )
        following = asyncio.create_task(models.follow(), name="runtime events")
        stack.push_async_callback(_cancelled, following)
        serving = relay.start().grpc
        loop = asyncio.get_running_loop()
        loop.add_reader(relay.fileno(), lambda: requests.handle(relay.take_events()))
        stack.callback(loop.remove_reader, relay.fileno())
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(each.name, each.methods)
                for each in services(models, info)
            )
        )
        try:
            bound = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise SettingsError(f"--port: {host}:{port} cannot be listened on: {error}.") from error
        await server.start()
        stack.push_async_callback(server.stop, _GRACE_S)
        yield Serving(f"{host}:{bound}", serving, following)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
