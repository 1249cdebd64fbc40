"""The scripted model server as a process, until a signal ends it. Its address is its one line of output."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Sequence

from modelmesh.testing.model_runtime.script import MIB, Faults, parse_script
from modelmesh.testing.model_runtime.server import ModelRuntimeServer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m modelmesh.testing.model_runtime", description=__doc__)
    parser.add_argument("address", nargs="?", default="127.0.0.1:8085", help='"host:port" or "unix:/path"')
    parser.add_argument("--scripts", default="{}", help="JSON: model id to the fields of its script")
    parser.add_argument("--default", default="{}", help="JSON: the script of all other models")
    parser.add_argument("--capacity-mib", type=int, default=1024)
    parser.add_argument("--max-loads", type=int, default=4)
    parser.add_argument("--methods", default="{}", help="JSON: full method name to its id injection path")
    parser.add_argument("--refuse-beyond-capacity", action="store_true")
    parser.add_argument("--starting", type=int, default=0, help="answers that say STARTING first")
    given = parser.parse_args(arguments)
    scripts = {model: parse_script(script) for model, script in json.loads(given.scripts).items()}
    asyncio.run(
        _serve_until_signal(
            ModelRuntimeServer(
                given.address,
                scripts=scripts,
                default=parse_script(json.loads(given.default)),
                faults=Faults(starting=given.starting, refuses_beyond_capacity=given.refuse_beyond_capacity),
                capacity_bytes=given.capacity_mib * MIB,
                max_loads=given.max_loads,
                methods=json.loads(given.methods),
            )
        )
    )


async def _serve_until_signal(server: ModelRuntimeServer) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with server:
        print(server.address, flush=True)
        await ended.wait()


if __name__ == "__main__":
    main()
