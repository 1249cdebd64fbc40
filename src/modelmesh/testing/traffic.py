"""Requests of clients to several instances, and whether each got an answer that it may get."""

from __future__ import annotations

import random
from collections import Counter
from typing import Final

from modelmesh.dataplane.protocol import Name, NameKind
from modelmesh.errors import Code
from modelmesh.testing.clients import Clients
from modelmesh.testing.requests import Answer, Request
from modelmesh.testing.stage import Stage

VMODELS: Final = ("v0", "v1")
TIMEOUTS_S: Final = (0.2, 1.0, 5.0, 15.0)
EXECUTIONS_S: Final = (0.001, 0.001, 0.05)


class Traffic:
    """`targets`: all models that a vmodel was ever pointed at."""

    def __init__(self, clients: Clients, rng: random.Random, seen: Counter[str]) -> None:
        self._clients = clients
        self._rng = rng
        self._seen = seen
        self.targets: dict[str, set[str]] = {vmodel: set() for vmodel in VMODELS}
        self.waiting: dict[int, Request] = {}
        """Requests that were not answered yet."""

    def name(self) -> Name:
        """Of anything that clients ask for."""
        if self._rng.random() < 0.2:
            return Name(NameKind.VMODEL, self._rng.choice(VMODELS))
        return Name(NameKind.MODEL, self._clients.known_model() or "m0")

    def ask(self, stage: Stage, name: Name, timeout_s: float) -> Request:
        """Begin a request. Its answer is judged when it comes."""
        known = self._clients.life(name.name) if name.kind is NameKind.MODEL else 0
        request = stage.dataplane.request(name, timeout_s, self._rng.choice(EXECUTIONS_S))
        self.waiting[id(request)] = request
        request.answer.add_done_callback(lambda _: self._answered(request, known))
        return request

    def _answered(self, request: Request, known: int) -> None:
        self.waiting.pop(id(request), None)
        if request.answer.cancelled():
            return
        answer: Answer = request.answer.result()
        self._seen[answer.code.name] += 1
        name = request.name
        if answer.code is Code.OK:
            meant = self.targets[name.name] if name.kind is NameKind.VMODEL else {name.name}
            self._clients.expect(answer.model in meant, f"{name} was served by {answer.model}")
        elif "model not found:" in answer.message and known:
            same = self._clients.life(name.name) == known
            self._clients.expect(not same, f"{name} was not found, though it is registered: {answer}")
