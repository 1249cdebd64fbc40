"""An ops port over a control plane without a mesh, served from a thread: what the CLI and its tests can talk to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from modelmesh.dataplane.protocol import Histogram, RelayStats
from modelmesh.instance.live_settings import LiveSettings
from modelmesh.mesh.control import Registration
from modelmesh.mesh.measures import Measures
from modelmesh.ops.app import ops_app
from modelmesh.ops.listener import Listener
from modelmesh.ops.parts import Listening, Parts
from modelmesh.ops.server import HTTPServer
from modelmesh.store.memory import MemoryStore
from modelmesh.testing.control import FakeControlPlane


class QuietRelay:
    """A relay that shows what it is given."""

    def __init__(self) -> None:
        self.shown = RelayStats(connections=2, in_flight=1, counters={"requests": 7})
        self.observed: list[Histogram] = []

    def stats(self) -> RelayStats:
        return self.shown

    def histograms(self) -> list[Histogram]:
        return self.observed


def parts_over(control: FakeControlPlane, relay: QuietRelay | None = None, *, rest: str = "") -> Parts:
    """Parts that admit every registration and drain at once."""

    async def drain() -> None:
        control.draining = True

    async def ended() -> bool:
        return control.draining

    def admit(registration: Registration) -> Registration:
        return registration

    return Parts(
        control=control,
        relay=relay or QuietRelay(),
        live=_live(control),
        measures=Measures(),
        admit=admit,
        drain=drain,
        ended=ended,
        listening=lambda: Listening("127.0.0.1:8033", rest, "http://127.0.0.1:8089"),
        oldest_use_wall_s=lambda: 0.0,
        clock=control.clock,
        folder="",
        budget_bytes=1 << 30,
    )


def _live(control: FakeControlPlane) -> LiveSettings:
    """Over a store in memory that nobody else writes to."""
    live = LiveSettings(MemoryStore(), control.journal)
    live.offer("log_level", lambda level: None, "info")
    live.offer("load_failure_expiry", lambda seconds: None, 450.0)
    return live


@contextmanager
def served_ops(parts: Parts, application: Callable[[Parts], Starlette] = ops_app) -> Iterator[str]:
    """The URL of an ops port, or one of the others, that is up while the context is open."""
    up, down, urls = threading.Event(), asyncio.Event(), list[str]()

    async def serve() -> None:
        listener = Listener("127.0.0.1", 0)
        server = HTTPServer(listener)
        await server.start(application(parts))
        urls.append(f"http://{listener.address}")
        loops.append(asyncio.get_running_loop())
        up.set()
        await down.wait()
        await server.stop()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="ops", daemon=True)
    thread.start()
    try:
        if not up.wait(10):
            raise TimeoutError("The ops port did not come up within 10 s.")
        yield urls[0]
    finally:
        if loops:
            loops[0].call_soon_threadsafe(down.set)
        thread.join(10)
