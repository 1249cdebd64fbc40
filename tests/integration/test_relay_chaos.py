"""Everything at once: full gates, moving routes, retirements, cut wires and clients that leave. Nobody is forgotten."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from pathlib import Path

import grpc
import pytest
from relay_face import CLIENT_OPTIONS, Context, Face, relay_face, run

from modelmesh.dataplane.protocol import Fault, Name, NameKind, Replica, Retired, Route

MODELS = [f"m{n}" for n in range(6)]
SECONDS = 2.0
CLIENTS = 32


class Chaos:
    def __init__(self, face: Face, seed: int) -> None:
        self.face = face
        self.rng = random.Random(seed)
        self.over = False
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.retired: Counter[int] = Counter()
        self._ids = itertools.count(1)
        self._tokens = itertools.count(1)
        self._listed: dict[str, tuple[Replica, ...]] = {}

    async def serve(self, request: bytes, context: Context) -> bytes:
        await asyncio.sleep(self.rng.random() * 0.01)
        if self.rng.random() < 0.02:
            context.set_trailing_metadata((("mm-not-here", "1"),))
            await context.abort(grpc.StatusCode.NOT_FOUND, "not here")
        return request

    def place(self, model: str) -> None:
        replicas = tuple(
            Replica(next(self._ids), self.rng.randint(1, 3), self.rng.choice([0, 1, 2]))
            for _ in range(self.rng.randint(1, 3))
        )
        self._listed[model] = replicas
        self.face.plane.publish([Route(model, replicas)])
        self.face.plane.publish_names([(Name(NameKind.MODEL_FIRST, model), model)])

    async def control(self) -> None:
        while True:
            for event in self.face.plane.take_events():
                if isinstance(event, Fault):
                    self.place(event.model or event.name.name)
                elif isinstance(event, Retired):
                    self.retired[event.token] += 1
            model = self.rng.choice(MODELS)
            if not self.over and self.rng.random() < 0.1 and model in self._listed:
                replica = self._listed[model][0]
                self.face.plane.retire([(replica.id, next(self._tokens))], self.rng.choice([1, 1000]))
            if not self.over and self.rng.random() < 0.02:
                self.face.plane.publish([Route(model, ())])
            await asyncio.sleep(0.003)

    async def cut_wires(self) -> None:
        while not self.over:
            wire = self.rng.choice(self.face.upstreams).wire
            await asyncio.sleep(0.3)
            await wire.cut()
            await asyncio.sleep(0.05)
            await wire.mend()

    async def client(self, channel: grpc.aio.Channel) -> None:
        while not self.over:
            message = b"x" * self.rng.choice([1, 100, 50_000])
            asked = self.face.ask(self.rng.choice(MODELS), message, channel=channel)
            if self.rng.random() < 0.05:
                await asyncio.sleep(self.rng.random() * 0.01)
                asked.cancel()
                await asyncio.wait({asked})
            else:
                self.codes[(await asked).code] += 1


@pytest.mark.parametrize("seed", [1, 2])
def test_every_call_ends_and_nothing_stays_behind(tmp_path: Path, seed: int) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, targets=3, max_concurrency=4, threads=3) as face:
            chaos = Chaos(face, seed)
            for upstream in face.upstreams:
                upstream.serve = chaos.serve
            channels = [grpc.aio.insecure_channel(face.address, options=CLIENT_OPTIONS) for _ in range(6)]
            control = asyncio.ensure_future(chaos.control())
            wires = asyncio.ensure_future(chaos.cut_wires())
            clients = [asyncio.ensure_future(chaos.client(channels[n % 6])) for n in range(CLIENTS)]
            await asyncio.sleep(SECONDS)
            chaos.over = True
            await wires
            async with asyncio.timeout(30):
                await asyncio.gather(*clients)
            await face.until(lambda: face.plane.stats().in_flight == 0)
            stats = face.plane.stats()
            assert (stats.parked_requests, stats.parked_bytes, stats.kept_bytes) == (0, 0, 0)
            # A request that loses two copies is given up; more than a few of those would be something else.
            assert set(chaos.codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, chaos.codes
            assert chaos.codes[grpc.StatusCode.OK] > 100
            assert chaos.codes[grpc.StatusCode.UNAVAILABLE] < chaos.codes[grpc.StatusCode.OK] / 10
            assert max(chaos.retired.values(), default=1) == 1
            face.plane.take_usage()
            assert not any(row.in_flight for row in face.plane.take_usage())
            control.cancel()
            await asyncio.wait({control})
            for channel in channels:
                await channel.close()

    run(test())
