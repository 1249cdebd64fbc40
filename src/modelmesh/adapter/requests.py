"""The way of requests to the loaded models: a data plane with a route per model and nothing to load behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Final

from modelmesh.dataplane.protocol import (
    DataPlane,
    Event,
    Fault,
    Name,
    NameKind,
    NotHere,
    Replica,
    Retired,
    Route,
    TargetBack,
    TargetLost,
)
from modelmesh.errors import Code

RETIRE_S: Final = 3.0
"""How long requests of a model that is unloaded may take; the mesh has waited for its own."""
_ANSWER_S: Final = 2.0


class Requests:
    """`on_lost` is told of a model whose server says that it has it no more, `on_reached` of servers out of reach or back."""

    def __init__(
        self,
        dataplane: DataPlane,
        on_lost: Callable[[str], None],
        on_reached: Callable[[int, bool], None],
    ) -> None:
        self._dataplane = dataplane
        self._on_lost = on_lost
        self._on_reached = on_reached
        self._replicas: dict[str, tuple[Replica, ...]] = {}
        self._tokens = count(1)
        self._retiring: dict[int, tuple[set[int], asyncio.Future[None]]] = {}

    def open(self, model: str, replicas: tuple[Replica, ...]) -> None:
        """Requests for the model go to these replicas from now on."""
        self._replicas[model] = replicas
        self._dataplane.publish([Route(model, replicas)])
        self._dataplane.publish_names([(Name(kind, model), model) for kind in NameKind])

    def cut(self, model: str) -> None:
        """The model is not here: requests for it get NOT_FOUND, by which its mesh knows. No error when it never was."""
        if self._replicas.pop(model, None) is not None:
            self._dataplane.forget_names([Name(kind, model) for kind in NameKind])
            self._dataplane.publish([Route(model, ())])

    async def close(self, model: str) -> None:
        """Take no more requests for the model and return when those there are are done, or have had their time."""
        replicas = self._replicas.get(model, ())
        if replicas:
            token, done = next(self._tokens), asyncio.get_running_loop().create_future()
            self._retiring[token] = ({replica.id for replica in replicas}, done)
            self._dataplane.retire([(replica.id, token) for replica in replicas], round(RETIRE_S * 1000))
            try:
                await asyncio.wait({done}, timeout=RETIRE_S + _ANSWER_S)
            finally:
                del self._retiring[token]
        self.cut(model)

    def handle(self, events: list[Event]) -> None:
        """What the data plane tells."""
        for event in events:
            match event:
                case Fault():
                    self._unknown(event)
                case Retired():
                    self._retired(event)
                case NotHere() if event.model in self._replicas:
                    self.cut(event.model)
                    self._on_lost(event.model)
                case TargetLost() | TargetBack():
                    self._on_reached(event.target_id, isinstance(event, TargetBack))
                case _:  # nothing waits here and nobody scales
                    pass

    def _unknown(self, fault: Fault) -> None:
        model = fault.model or fault.name.name
        sentence = f"Model {model} is not here."
        if fault.model:
            self._dataplane.refuse(fault.model, Code.NOT_FOUND, sentence, -1, 0)
        else:
            self._dataplane.refuse_name(fault.name, Code.NOT_FOUND, sentence, -1, 0)

    def _retired(self, event: Retired) -> None:
        pending, done = self._retiring.get(event.token, (set(), None))
        pending.discard(event.replica_id)
        if done is not None and not pending and not done.done():
            done.set_result(None)
