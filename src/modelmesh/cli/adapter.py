"""`adapter`: serve a runtime of ours to the mesh of somebody else."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Annotated

import typer

from modelmesh.cli import logs
from modelmesh.cli.exits import CommandFailed, Exit
from modelmesh.errors import ModelMeshError, SettingsError
from modelmesh.settings.sources import read_settings
from modelmesh.settings.tree import Settings

app = typer.Typer(no_args_is_help=True, help="Serve a runtime of ours as an mmesh.ModelRuntime server.")


@app.callback()
def adapter() -> None:
    pass


@app.command("builtin")
def builtin(
    port: Annotated[int, typer.Option(help="Port by which the mesh manages it. 0: any free port.")] = 8085,
    serving_port: Annotated[
        int, typer.Option(help="Port for requests: the mesh's INTERNAL_SERVING_GRPC_PORT. 0: any free port.")
    ] = 8086,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    memory: Annotated[str, typer.Option(help="Memory the workers may use in all, as of serve.")] = "60%",
    workers: Annotated[str, typer.Option(help="Worker processes, as of serve.")] = "",
    model_root: Annotated[str, typer.Option(help="Folder that the models must lie under.")] = "",
) -> None:
    """The built-in runtime (scikit-learn, XGBoost, LightGBM, ONNX)."""
    flags = {"memory": memory, "workers": workers or None, "model_root": model_root or None, "host": host}
    try:
        settings = read_settings({name: value for name, value in flags.items() if value is not None}, {})
        logs.configure(settings.logs)
        if settings.models.model_root is None:
            raise SettingsError("--model-root is missing: the folder that the models lie under.")
        asyncio.run(_serve(settings, port, serving_port))
    except ModelMeshError as error:
        raise CommandFailed(str(error), Exit.NOT_STARTED) from error


async def _serve(settings: Settings, port: int, serving_port: int) -> None:
    from modelmesh.adapter.serving import builtin_adapter

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with builtin_adapter(settings, port, serving_port) as serving:
        sys.stdout.write(
            f"Serving the built-in runtime.\n  management  {serving.management}\n  requests    {serving.requests}\n"
        )
        sys.stdout.flush()
        signalled = asyncio.create_task(ended.wait(), name="signal")
        await asyncio.wait({signalled, serving.following}, return_when=asyncio.FIRST_COMPLETED)
        if not signalled.done():
            signalled.cancel()
            serving.following.result()
