"""Calls that come while one is under way are done together next: a transaction, or a thread, costs hardly more for many than for
one. A call that comes alone is done at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from modelmesh.errors import ModelMeshError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Gathering(Generic[Item, Answer]):
    """One owner, the event loop."""

    def __init__(
        self, do: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | ModelMeshError]]], at_once: int
    ) -> None:
        """`do` answers for each item, in order; what it raises is the answer for all. It is given `at_once` at most."""
        self._do = do
        self._at_once = at_once
        self._arrived: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._doing: asyncio.Task[None] | None = None

    async def one(self, item: Item) -> Answer:
        """Its answer. Raises the error that is its answer, or what `do` raised."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._arrived.append((item, answer))
        if self._doing is None or self._doing.done():
            self._doing = asyncio.create_task(self._do_all(), name="calls done together")
        return await answer

    async def _do_all(self) -> None:
        while self._arrived:
            now, self._arrived = self._arrived[: self._at_once], self._arrived[self._at_once :]
            await self._do_together([(item, waits) for item, waits in now if not waits.done()])

    async def _do_together(self, several: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._do([item for item, _ in several])
        except Exception as error:
            answers = [error] * len(several)
        for (_, waits), answer in zip(several, answers, strict=True):
            if waits.done():
                continue
            if isinstance(answer, Exception):
                waits.set_exception(answer)
            else:
                waits.set_result(answer)
