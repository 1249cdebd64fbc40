"""Clients that know the right answers: many at once in a process of their own, over gRPC, each answer checked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as oip

from bench.load import INFER
from bench.models import ZooModel

TOLERANCE = 1e-6
"""Relative, for floats. Labels must be equal."""

TOLD_MAX = 20
DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}


@dataclass(slots=True)
class Tally:
    """What came back in one phase. `errors` and `wrong` tell the first few; `latencies_ms` has one entry per answer."""

    phase: str
    seconds: float = 0.0
    asked: int = 0
    n_errors: int = 0
    n_wrong: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    def count_error(self, told: str) -> None:
        self.n_errors += 1
        if len(self.errors) < TOLD_MAX:
            self.errors.append(told)

    def count_wrong(self, told: str) -> None:
        self.n_wrong += 1
        if len(self.wrong) < TOLD_MAX:
            self.wrong.append(told)


def request(model: ZooModel, row: int) -> bytes:
    """One row of the model, raw, for the output whose answer is known."""
    values = np.asarray([model.rows[row]], DTYPES[model.datatype])
    message = oip.ModelInferRequest(model_name=model.name)
    message.inputs.add(name="x", datatype=model.datatype, shape=list(values.shape))
    message.outputs.add(name=model.output)
    message.raw_input_contents.append(values.tobytes())
    return message.SerializeToString()


def difference(model: ZooModel, row: int, answer: bytes) -> str | None:
    """None when the answer is the model's own prediction, else what is wrong with it."""
    reply = oip.ModelInferResponse.FromString(answer)
    names = [output.name for output in reply.outputs]
    if names != [model.output] or len(reply.raw_output_contents) != 1:
        return f"{model.name} answered the outputs {names} with {len(reply.raw_output_contents)} raw contents"
    values = np.frombuffer(reply.raw_output_contents[0], DTYPES[reply.outputs[0].datatype])
    expected = np.asarray(model.answers[row])
    exact = np.issubdtype(values.dtype, np.integer)
    if values.shape != expected.shape or not np.allclose(
        values, expected, rtol=0 if exact else TOLERANCE, atol=0
    ):
        return f"{model.name} row {row} answered {values.tolist()} where it predicts {expected.tolist()}"
    return None


Pick = tuple[int, int]
"""(index of the model, row)"""


def zipf_picks(n_models: int, rng: np.random.Generator, exponent: float = 1.0) -> Iterator[Pick]:
    """Endless: which model is popular is drawn once, from `rng`'s seed sequence."""
    weights = np.arange(1, n_models + 1, dtype=np.float64) ** -exponent
    by_rank = rng.permutation(n_models)
    while True:
        ranks = rng.choice(n_models, 4096, p=weights / weights.sum())
        yield from zip(by_rank[ranks].tolist(), rng.integers(0, 4, 4096).tolist(), strict=True)


class Clients:
    """`n_clients` that ask one after the other, all at once, over a few connections."""

    def __init__(self, address: str, index: Sequence[ZooModel], *, n_clients: int, seed: int) -> None:
        self._address = address
        self._index = index
        self._n_clients = n_clients
        self._rng = np.random.default_rng(seed)
        self._popularity = zipf_picks(len(index), self._rng)
        self._bodies: dict[Pick, bytes] = {}

    async def zipf(self, seconds: float) -> Tally:
        deadline_s = time.monotonic() + seconds
        picks = itertools.takewhile(lambda _: time.monotonic() < deadline_s, self._popularity)
        return await self._run("Zipf", picks)

    async def sweep(self) -> Tally:
        """Every model once, in random order."""
        order = self._rng.permutation(len(self._index)).tolist()
        return await self._run("sweep", iter([(model, model % 4) for model in order]))

    async def steady(self, per_second: float, seconds: float) -> Tally:
        """So many a second, whatever is answered: each one's time counts from when it was due."""
        tally, started_s = Tally("steady"), time.monotonic()
        async with self._calls() as calls, asyncio.TaskGroup() as asking:
            for number in range(round(per_second * seconds)):
                due_s = started_s + number / per_second
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                call, pick = calls[number % len(calls)], next(self._popularity)
                asking.create_task(self._ask(call, pick, tally, due_s))
        tally.seconds = time.monotonic() - started_s
        return tally

    async def _run(self, phase: str, picks: Iterator[Pick]) -> Tally:
        tally, started_s = Tally(phase), time.monotonic()
        async with self._calls() as calls, asyncio.TaskGroup() as clients:
            for number in range(self._n_clients):
                clients.create_task(self._client(calls[number % len(calls)], picks, tally))
        tally.seconds = time.monotonic() - started_s
        return tally

    @contextlib.asynccontextmanager
    async def _calls(self) -> AsyncIterator[list[grpc.aio.UnaryUnaryMultiCallable]]:
        """The method on a few connections."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            grpc.aio.insecure_channel(self._address, options=options) for _ in range(min(8, self._n_clients))
        ]
        calls = [
            channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
            for channel in channels
        ]
        yield calls
        for channel in channels:
            await channel.close()

    async def _client(
        self, call: grpc.aio.UnaryUnaryMultiCallable, picks: Iterator[Pick], tally: Tally
    ) -> None:
        for pick in picks:
            await self._ask(call, pick, tally, time.monotonic())

    async def _ask(
        self, call: grpc.aio.UnaryUnaryMultiCallable, pick: Pick, tally: Tally, due_s: float
    ) -> None:
        index, row = pick
        model = self._index[index]
        body = self._bodies.get(pick) or self._bodies.setdefault(pick, request(model, row))
        tally.asked += 1
        try:
            answer = await call(body, timeout=60)
        except grpc.aio.AioRpcError as error:
            tally.count_error(f"{model.name}: {error.code().name}: {error.details()}")
            return
        tally.latencies_ms.append((time.monotonic() - due_s) * 1000)
        if told := difference(model, row, answer):
            tally.count_wrong(told)


@dataclass(frozen=True, slots=True)
class Plan:
    """Zipf traffic for `seconds`, a sweep over all models at half of it."""

    address: str
    index: Sequence[ZooModel]
    seconds: float
    n_clients: int
    seed: int


def run(plan: Plan, *, timeout_s: float, while_waiting: Callable[[], None]) -> list[Tally]:
    """Run the clients in a process of their own; `while_waiting` is called again and again meanwhile.

    TimeoutError after `timeout_s`, RuntimeError when the process dies.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(plan, sender), name="clients", daemon=True)
    process.start()
    sender.close()
    deadline_s = time.monotonic() + timeout_s
    try:
        while not receiver.poll(0):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the clients did not finish within {timeout_s:.0f} s")
            while_waiting()
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError("the clients' process died; its traceback is above") from error
    finally:
        process.terminate()
        process.join(10)


def _main(plan: Plan, sender: Connection) -> None:
    async def phases() -> list[Tally]:
        clients = Clients(plan.address, plan.index, n_clients=plan.n_clients, seed=plan.seed)
        return [
            await clients.zipf(plan.seconds / 2),
            await clients.sweep(),
            await clients.zipf(plan.seconds / 2),
        ]

    sender.send(asyncio.run(phases()))
