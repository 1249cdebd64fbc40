"""What is asked of another instance while requests wait: numbered questions and their answers, in any order, on one stream.

A call costs several times what a message on a stream does, here and there.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from modelmesh.peers.messages import SERVICE
from modelmesh.wire.generated import peers_pb2 as pb

if TYPE_CHECKING:
    import grpc.aio

DEADLINE_MS_MAX: Final = (1 << 32) - 1


class Conversation:
    """Over one call of `Peers.Converse`. One owner, the event loop. It ends with the call, and is of no use from then on."""

    def __init__(self, channel: grpc.aio.Channel, id: str) -> None:
        """To the instance `id`."""
        converse: Any = channel.stream_stream(
            f"/{SERVICE}/Converse",
            request_serializer=pb.Question.SerializeToString,
            response_deserializer=pb.Answer.FromString,
        )
        self._call = converse()
        self._numbers = count(1)
        self._open: dict[int, asyncio.Future[pb.Answer]] = {}
        """Questions whose answers are awaited."""
        self._unsent: dict[int, pb.Question] = {}
        self._more = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name=f"answers of {id}")
        self._writing = asyncio.create_task(self._write(), name=f"questions to {id}")

    @property
    def ended(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._reading.done()

    async def ask(self, question: pb.Question, deadline_s: float) -> pb.Answer:
        """Give the question its number, send it and wait for its answer. Raises TimeoutError after the deadline;
        grpc.aio.AioRpcError when the stream breaks, asyncio.CancelledError when it is closed."""
        number, loop = next(self._numbers), asyncio.get_running_loop()
        question.number = number
        question.deadline_ms = max(round(min(deadline_s * 1000, DEADLINE_MS_MAX)), 1)
        answer: asyncio.Future[pb.Answer] = loop.create_future()
        timer = loop.call_later(deadline_s, _expire, answer)
        self._open[number] = answer
        self._send(question)
        try:
            return await answer
        finally:
            del self._open[number]
            timer.cancel()
            if answer.cancelled() or isinstance(answer.exception(), TimeoutError):
                self._withdraw(number)

    def _send(self, question: pb.Question) -> None:
        self._unsent[question.number] = question
        self._more.set()

    def _withdraw(self, number: int) -> None:
        if self._unsent.pop(number, None) is None and not self.ended:
            self._send(pb.Question(number=number, withdrawn=True))

    async def close(self) -> None:
        """End it; whoever waits is told. Idempotent."""
        self._call.cancel()
        self._reading.cancel()
        self._writing.cancel()
        await asyncio.gather(self._reading, self._writing, return_exceptions=True)

    # --- the stream -----------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """By a task of its own: one message at a time, and a call is over when one that writes to it is cancelled."""
        import grpc.aio

        try:
            while True:
                await self._more.wait()
                self._more.clear()
                while self._unsent:
                    await self._call.write(self._unsent.pop(next(iter(self._unsent))))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # it has ended, and reading says why

    async def _read(self) -> None:
        import grpc.aio

        error: grpc.aio.AioRpcError | None = None
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                self._take(answer)
        except grpc.aio.AioRpcError as raised:
            error = raised
        finally:
            self._writing.cancel()
            for waits in self._open.values():
                if waits.done():
                    continue
                if error is None:
                    waits.cancel()
                else:
                    waits.set_exception(error)

    def _take(self, answer: pb.Answer) -> None:
        waits = self._open.get(answer.number)
        if waits is not None and not waits.done():
            waits.set_result(answer)


def _expire(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
