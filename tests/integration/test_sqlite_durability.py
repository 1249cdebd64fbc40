"""Nothing acknowledged is lost: a process that registers in a loop is killed, and its registry opened again."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path

from modelmesh.clock import LoopClock
from modelmesh.journal import Journal
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.registry.mirror import Mirror
from modelmesh.store.sqlite import SQLiteStore

REGISTER_FOR_EVER = """
import asyncio, itertools, pathlib, sys
from modelmesh.clock import LoopClock
from modelmesh.journal import Journal
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming.registrar import Registrar
from modelmesh.registry.mirror import Mirror
from modelmesh.store.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(pathlib.Path(sys.argv[1]))
    await store.open()
    clock = LoopClock()
    registrar = Registrar(store, Mirror(), clock, Journal(clock))
    await registrar.start()

    async def one_by_one(who):
        for n in itertools.count():
            id = f"{sys.argv[2]}-{who}-{n}"
            await registrar.register(Registration(id, "onnx", "/" + id))
            print(id, flush=True)

    async def in_bulk():
        for n in itertools.count():
            ids = [f"{sys.argv[2]}-bulk-{n}-{i}" for i in range(50)]
            answers = await registrar.register_many([Registration(id, "onnx", "/" + id) for id in ids])
            assert answers == [None] * 50
            print(*ids, sep="\\n", flush=True)

    await asyncio.gather(*(one_by_one(who) for who in range(4)), in_bulk())

asyncio.run(main())
"""


async def registered(path: Path) -> dict[str, str]:
    """Every model in the registry, with its path."""
    store, clock = SQLiteStore(path), LoopClock()
    await store.open()
    mirror = Mirror()
    registrar = Registrar(store, mirror, clock, Journal(clock))
    await registrar.start()
    models = {id: record.path for id, record in mirror.page(limit=0)}
    await registrar.stop()
    await store.close()
    return models


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    path = tmp_path / "registry.db"
    acknowledged: set[str] = set()
    for life in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", REGISTER_FOR_EVER, str(path), str(life)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            for _ in range(rng.randrange(50, 400)):
                line = process.stdout.readline()
                assert line, "it died by itself"
                acknowledged.add(line.strip())
        finally:
            process.send_signal(signal.SIGKILL)
        with process.stdout as stdout:  # not communicate(): it passes over what readline has buffered
            acknowledged.update(line.strip() for line in stdout if line.endswith("\n"))
        process.wait(timeout=30)
        models = asyncio.run(registered(path))
        assert acknowledged <= set(models)
        assert all(path == "/" + id for id, path in models.items())
