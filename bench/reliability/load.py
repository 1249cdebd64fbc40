"""Clients that send at a steady rate, whatever comes back, through `tritonclient`, and check each answer.

Each client holds one connection to one instance and never repeats a request. It goes elsewhere when its own call could not be
carried or was not answered in time, or when its instance is ready no more: what a load balancer before them would do.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient, InferResult
from tritonclient.utils import InferenceServerException

from bench.models import ZooModel
from bench.traffic import DTYPES, difference, zipf_picks

IN_FLIGHT_MAX = 4000
CHANNEL = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
LEAVES = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED")


@dataclass(frozen=True, slots=True)
class Plan:
    """`exponent` is that of Zipf's law over `models`; `deadline_s` each request's."""

    addresses: Sequence[str]
    models: Sequence[ZooModel]
    per_second: float
    n_clients: int = 16
    deadline_s: float = 10.0
    exponent: float = 0.8
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one request. `at_s` is when it was due, by time.monotonic, and `took_s` counts from then; `entry` is the address it was
    sent to, `error` empty when it was answered, `wrong` empty when the answer was right."""

    at_s: float
    took_s: float
    entry: str
    model: str
    error: str = ""
    wrong: str = ""

    @property
    def good(self) -> bool:
        return not self.error and not self.wrong

    @property
    def ended_s(self) -> float:
        return self.at_s + self.took_s


class Load:
    """A context: a process of its own that sends while it is entered. `outcomes` stand when `stop` returned."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Load:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(self._plan, theirs), name="clients", daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(30) or self._pipe.recv() != "sending":
            raise RuntimeError("the clients did not start")
        return self

    def tell_ready(self, addresses: Sequence[str]) -> None:
        """Which instances clients may use now."""
        self._pipe.send(list(addresses))

    def stop(self) -> None:
        """Send no more; returns when all that was sent has ended."""
        self._pipe.send(None)
        if not self._pipe.poll(self._plan.deadline_s + 30):
            raise TimeoutError("the clients did not end")
        self.outcomes = self._pipe.recv()

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.join(10)
        self._pipe.close()


def _main(plan: Plan, pipe: Connection) -> None:
    asyncio.run(_send(plan, pipe))


async def _send(plan: Plan, pipe: Connection) -> None:
    sender = _Sender(plan)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def told() -> None:
        message = pipe.recv()
        if message is None:
            ended.set()
        else:
            sender.ready(message)

    loop.add_reader(pipe.fileno(), told)
    pipe.send("sending")
    pipe.send(await sender.send_until(ended))


class _Sender:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._addresses = list(plan.addresses)
        self._clients = [_Client(self._addresses[n % len(self._addresses)]) for n in range(plan.n_clients)]
        self._next = itertools.cycle(self._clients)
        self._picks = zipf_picks(len(plan.models), np.random.default_rng(plan.seed), plan.exponent)
        self._outcomes: list[Outcome] = []

    def ready(self, addresses: Sequence[str]) -> None:
        self._addresses = list(addresses) or self._addresses
        for number, client in enumerate(self._clients):
            if client.address not in self._addresses:
                client.move(self._addresses[number % len(self._addresses)])

    async def send_until(self, ended: asyncio.Event) -> list[Outcome]:
        due_s, in_flight = time.monotonic(), set[asyncio.Task[None]]()
        while not ended.is_set():
            due_s += 1 / self._plan.per_second
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            model, row = next(self._picks)
            if len(in_flight) >= IN_FLIGHT_MAX:
                raise RuntimeError(f"{IN_FLIGHT_MAX} requests wait for their answers")
            asking = asyncio.create_task(self._ask(next(self._next), self._plan.models[model], row, due_s))
            in_flight.add(asking)
            asking.add_done_callback(in_flight.discard)
        await asyncio.gather(*in_flight)
        for client in self._clients:
            await client.close()
        return self._outcomes

    async def _ask(self, client: _Client, model: ZooModel, row: int, due_s: float) -> None:
        entry, error, wrong = client.address, "", ""
        try:
            answer = await client.infer(model, row, self._plan.deadline_s)
            wrong = difference(model, row, answer.get_response().SerializeToString()) or ""
        except InferenceServerException as failure:
            error = f"{failure.status()}: {failure.message()}"
            if failure.status() in LEAVES and client.address == entry:
                others = [each for each in self._addresses if each != entry]
                if others:
                    client.move(others[self._clients.index(client) % len(others)])
        took_s = time.monotonic() - due_s
        self._outcomes.append(Outcome(due_s, took_s, entry, model.name, error, wrong))


class _Client:
    """One connection, to `address`. Where it moved away from, calls under way go on."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = self._connected()
        self._left: list[InferenceServerClient] = []

    def _connected(self) -> InferenceServerClient:
        return InferenceServerClient(self.address, channel_args=CHANNEL)

    def move(self, address: str) -> None:
        self._left.append(self._client)
        self.address = address
        self._client = self._connected()

    async def infer(self, model: ZooModel, row: int, deadline_s: float) -> InferResult:
        values = np.asarray([model.rows[row]], DTYPES[model.datatype])
        x = InferInput("x", list(values.shape), model.datatype)
        x.set_data_from_numpy(values)
        outputs = [InferRequestedOutput(model.output)]
        return await self._client.infer(model.name, [x], outputs=outputs, client_timeout=deadline_s)

    async def close(self) -> None:
        for client in (*self._left, self._client):
            await client.close()
