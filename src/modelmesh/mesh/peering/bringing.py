"""Bringing a model to a number of copies in several instances: the target of a vmodel, before it takes over.

Loads under way are joined; further places are chosen by cost among those with room beside the copies that are not to be
disturbed. Fewer copies are right where there are not as many places, or where the others take much longer than the first.
"""

from __future__ import annotations

import asyncio
from typing import Final

from modelmesh.clock import Clock
from modelmesh.errors import ModelMeshError, NoCapacity, RuntimeUnavailable
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.peering.provider import PLACES
from modelmesh.peers.protocol import Provided

LATE_LOADS: Final = 2.0
LATE_S: Final = 60.0
"""Once there is a copy, the others are waited for until twice its load time and this have passed, from the beginning."""
LOAD_S: Final = 900.0
"""What one load may take at another instance."""
LOOK_S: Final = 1.0
"""What others tell of their copies is looked at so often while loads are waited for."""
UNSEEN_S: Final = 5.0
"""An instance that was asked for so long and tells of no load has not heard of it."""


async def bring(others: Others, clock: Clock, model: str, copies: int, *, beside: str, why: str) -> None:
    """Return once the model is loaded in `copies` instances, or in as many as have room for it beside their copy of `beside`,
    or in some while the others are late. When it is loaded in none, raises what the last of `PLACES` instances raised;
    NoCapacity where none has room."""
    bringing = _Bringing(others, clock, model, copies, beside, why)
    try:
        while not bringing.over():
            await bringing.look()
    finally:
        await bringing.end()
    if not others.serving(model):
        sentence = f"No instance has room for model {model} beside {beside}."
        raise bringing.error or NoCapacity(sentence, model=model)


class _Bringing:
    def __init__(self, others: Others, clock: Clock, model: str, copies: int, beside: str, why: str) -> None:
        self._others = others
        self._clock = clock
        self._model = model
        self._copies = copies
        self._beside = beside
        self._ask = others.ask_like(model, beside, LOAD_S, why)
        self._began_s = clock.monotonic_s()
        self._ends_s = float("inf")
        self._tried: set[str] = set()
        self._loads: dict[asyncio.Task[Provided], tuple[str, float]] = {}
        """Those that run, with where, and since when."""
        self._failed = 0
        self.error: ModelMeshError | None = None

    def over(self) -> bool:
        """Whether there is nothing left to wait for; else all is under way that can be."""
        serving, now_s = self._others.serving(self._model), self._clock.monotonic_s()
        if serving and self._ends_s == float("inf"):
            self._ends_s = self._began_s + LATE_LOADS * (now_s - self._began_s) + LATE_S
        if len(serving) >= self._copies or now_s >= self._ends_s:
            return True
        while len(serving | self._places()) < self._copies and self._failed < PLACES:
            there = self._place()
            if there is None:
                break
            call = self._others.load_at(there, self._ask)
            self._loads[asyncio.create_task(call, name=f"bring {self._model} to {there}")] = there, now_s
        return not self._loads

    def _places(self) -> set[str]:
        return {there for there, _ in self._loads.values()}

    def _place(self) -> str | None:
        """Where to load the next copy: where a load is under way already, else the cheapest place."""
        excluded = self._tried | self._others.serving(self._model) | self._places()
        under_way = sorted(self._others.begun(self._model) - excluded)
        if under_way:
            return under_way[0]
        return self._others.provider.places.choose_beside(self._ask, self._beside, excluded)

    async def look(self) -> None:
        """Wait until a load ends, but not for long, and take in what came of those that ended or were not heard of."""
        done, _ = await asyncio.wait(self._loads, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        for load in done:
            there, _ = self._loads.pop(load)
            error = load.exception()
            if isinstance(error, ModelMeshError):
                self._fail(there, error)
            elif error is not None:
                raise error
        known = self._others.serving(self._model) | self._others.begun(self._model)
        asked_s = self._clock.monotonic_s() - UNSEEN_S
        for load, (there, since_s) in list(self._loads.items()):
            if since_s < asked_s and there not in known:
                load.cancel()
                del self._loads[load]
                self._fail(there, RuntimeUnavailable(f"Instance {there} does not answer.", model=self._model))

    def _fail(self, there: str, error: ModelMeshError) -> None:
        self._tried.add(there)
        self._failed += 1
        self.error = error

    async def end(self) -> None:
        """Wait for nothing any more. Loads that run at other instances go on."""
        for load in self._loads:
            load.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)
