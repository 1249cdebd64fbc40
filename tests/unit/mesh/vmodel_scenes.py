"""What scenes of vmodels among several instances have in common."""

from __future__ import annotations

import asyncio
from collections import Counter

from modelmesh.errors import Code
from modelmesh.mesh.peering.bringing import bring
from modelmesh.testing.requests import Request
from modelmesh.testing.theatre import Theatre


class Clients:
    """Ask for a vmodel at every instance that lives, every few milliseconds, until left. None may fail, except as `allowed`, none
    may wait for a load."""

    def __init__(
        self,
        theatre: Theatre,
        vmodel: str,
        every_s: float = 0.02,
        waits_s: float = 0.1,
        allowed: tuple[Code, ...] = (Code.OK,),
    ) -> None:
        self._theatre = theatre
        self._vmodel = vmodel
        self._every_s = every_s
        self._waits_s = waits_s
        self._allowed = allowed
        self._asking: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Future[None]] = set()
        self.served: Counter[str] = Counter()
        """Model -> answers."""
        self.bad: list[str] = []

    async def __aenter__(self) -> Clients:
        self._asking = asyncio.create_task(self._ask_on())
        await asyncio.sleep(0.5)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._asking is not None
        self._asking.cancel()
        await asyncio.gather(self._asking, *self._answers, return_exceptions=True)
        assert not self.bad or error[0], self.bad[:5]
        assert self.served

    async def _ask_on(self) -> None:
        while True:
            for id, stage in self._theatre.stages.items():
                call = asyncio.ensure_future(self._ask(id, stage.ask(self._vmodel)))
                self._answers.add(call)
                call.add_done_callback(self._answers.discard)
            await asyncio.sleep(self._every_s)

    async def _ask(self, id: str, request: Request) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            answer = await asyncio.shield(request.answer)
        except asyncio.CancelledError:
            return  # its instance died, or the scene is over
        took_s = loop.time() - began_s
        self.served[answer.model] += 1
        if answer.code not in self._allowed or took_s > self._waits_s:
            self.bad.append(f"at {loop.time():.3f} s {id}: {answer}, after {took_s:.3f} s")


async def copies(theatre: Theatre, model: str, n: int) -> None:
    """Have a model loaded in so many instances."""
    stage = next(iter(theatre))
    others = stage.mesh._others
    assert others is not None
    await bring(others, stage.clock, model, n, beside="", why="of a test")
    await theatre.settled()
    assert len(theatre.holders(model)) == n


def holds(theatre: Theatre, model: str) -> list[tuple[str, ...]]:
    """Why each instance holds it."""
    return [stage.mesh._copies.holds(model) for stage in theatre]


def keeper_of(theatre: Theatre, vmodel: str) -> str:
    (keeper,) = [
        id for id, stage in theatre.stages.items() if stage.mesh.vmodel_calls.transitions.moving(vmodel)
    ]
    return keeper
