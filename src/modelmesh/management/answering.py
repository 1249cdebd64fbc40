"""The answers to what one other instance asks while requests wait: each question by a task of its own, on one stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

from modelmesh.errors import ModelMeshError, RuntimeUnavailable
from modelmesh.peers import messages
from modelmesh.peers.protocol import Hosted, Provided
from modelmesh.wire.generated import peers_pb2 as pb

DEADLINE_S: Final = 120.0
"""Of a question that came without one."""
QUESTIONS_MAX: Final = 20_000
"""Of one instance, at a time."""

log = logging.getLogger(__name__)


class Answering:
    """Of one stream. `hosted` says whom the questions reach; it may raise."""

    def __init__(self, hosted: Callable[[], Hosted]) -> None:
        self._hosted = hosted
        self._ready: asyncio.Queue[pb.Answer | None] = asyncio.Queue()
        self._running: dict[int, asyncio.Task[None]] = {}

    async def answers(self, questions: AsyncIterator[pb.Question]) -> AsyncGenerator[pb.Answer, None]:
        """As they are ready, until there are no more questions."""
        reading = asyncio.create_task(self._read(questions), name="questions")
        try:
            while (answer := await self._ready.get()) is not None:
                yield answer
        finally:
            tasks = [reading, *self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, questions: AsyncIterator[pb.Question]) -> None:
        try:
            async for question in questions:
                self._take(question)
        finally:
            self._ready.put_nowait(None)

    def _take(self, question: pb.Question) -> None:
        number = question.number
        if question.WhichOneof("asked") == "withdrawn":
            running = self._running.get(number)
            if running is not None:
                running.cancel()
        elif len(self._running) < QUESTIONS_MAX:
            self._running[number] = asyncio.create_task(self._answer(question), name=f"question {number}")
        else:
            busy = RuntimeUnavailable(
                f"More than {QUESTIONS_MAX:,} questions wait for an answer here.", retry_after_s=1.0
            )
            self._ready.put_nowait(pb.Answer(number=number, refused=messages.to_refused(busy)))

    async def _answer(self, question: pb.Question) -> None:
        number = question.number
        try:
            provided = messages.to_provided(await self._provided(question))
            answer = pb.Answer(number=number, provided=provided)
        except ModelMeshError as error:
            answer = pb.Answer(number=number, refused=messages.to_refused(error))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not who asks gave up: what was joined here did.
            ended = RuntimeUnavailable("The instance gave it up.", retry_after_s=1.0)
            answer = pb.Answer(number=number, refused=messages.to_refused(ended))
        except Exception as error:
            log.exception("A question of another instance ended by a bug: please report it.")
            bug = RuntimeUnavailable(f"The instance failed unexpectedly: {type(error).__name__}: {error}")
            answer = pb.Answer(number=number, refused=messages.to_refused(bug))
        finally:
            self._running.pop(number, None)
        self._ready.put_nowait(answer)

    async def _provided(self, question: pb.Question) -> Provided:
        """Raises ModelMeshError."""
        hosted, deadline_s = self._hosted(), question.deadline_ms / 1000 or DEADLINE_S
        if question.WhichOneof("asked") == "provide":
            asked = question.provide
            return await hosted.provide(asked.asker, messages.from_ask(asked, deadline_s))
        asked = question.load
        return await hosted.load(asked.asker, messages.from_ask(asked, deadline_s))
