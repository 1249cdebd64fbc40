"""Requests of the simulator's data plane that lead nowhere yet: parked, or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from modelmesh.dataplane.protocol import Abandoned, Event, Fault, Name, Waiting
from modelmesh.errors import Code
from modelmesh.testing.requests import Answer, Request

REFUSED_NAMES_MAX: Final = 10_000


class _Refusal(NamedTuple):
    answer: Answer
    until_s: float


class Parking:
    """A request waits for its name to stand for something, or for its model to have a route. `emit` is told of the first that
    waits for either (`Fault`), and when the last went away unanswered (`Abandoned`). `finish` answers a request."""

    def __init__(self, emit: Callable[[Event], None], finish: Callable[[Request, Answer], None]) -> None:
        self._emit = emit
        self._finish = finish
        self._by_unknown_name: dict[Name, dict[int, Request]] = {}
        self._by_model: dict[str, dict[int, Request]] = {}
        self._by_known_name: dict[Name, dict[int, Request]] = {}
        """The same requests as in `_by_model`."""
        self._faulted: set[Name | str] = set()
        self._refused_names: dict[Name, _Refusal] = {}
        self._refused_models: dict[str, _Refusal] = {}
        self._ready_s: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_model.values())) + sum(map(len, self._by_unknown_name.values()))

    @property
    def models(self) -> Iterable[str]:
        """Those that requests wait for."""
        return self._by_model

    def wait_for_name(self, request: Request) -> None:
        """Park it until `resume_name`, unless the name is refused."""
        name = request.name
        refusal = self._refused_names.get(name)
        if refusal is not None and _now_s() < refusal.until_s:
            self._finish(request, refusal.answer)
            return
        request.model = ""
        parked = self._by_unknown_name.setdefault(name, {})
        parked[id(request)] = request
        if name not in self._faulted:
            self._faulted.add(name)
            self._emit(_fault(name, "", parked))

    def wait_for_model(self, request: Request) -> None:
        """Park it until `resume_model`, unless the model is refused or cannot be ready in time."""
        model = request.model
        refusal = self._refused_models.get(model)
        if refusal is not None and _now_s() < refusal.until_s:
            self._finish(request, refusal.answer)
        elif request.deadline_s < self._ready_s.get(model, 0.0):
            self._finish(request, self._too_late(model))
        else:
            parked = self._by_model.setdefault(model, {})
            parked[id(request)] = self._by_known_name.setdefault(request.name, {})[id(request)] = request
            if model not in self._faulted:
                self._faulted.add(model)
                self._emit(_fault(request.name, model, parked))

    def leave(self, request: Request) -> None:
        """Its client went away, or it looks elsewhere. No error when it did not wait."""
        waiting = self._by_unknown_name.get(request.name)
        if waiting is not None and id(request) in waiting:
            del waiting[id(request)]
        if waiting is not None and not waiting:
            del self._by_unknown_name[request.name]
            if request.name in self._faulted:
                self._faulted.discard(request.name)
                self._emit(Abandoned(request.name, ""))
        parked = self._by_model.get(request.model)
        if parked is not None and id(request) in parked:
            del parked[id(request)]
            self._forget_name_of(request)
        if parked is not None and not parked:
            del self._by_model[request.model]
            if request.model in self._faulted:
                self._faulted.discard(request.model)
                self._emit(Abandoned(request.name, request.model))

    def resume_name(self, name: Name, model: str | None) -> list[Request]:
        """Those to resolve again now that a name stands for this model, or for nothing. No refusal of it holds any more."""
        self._refused_names.pop(name, None)
        again = list(self._by_unknown_name.pop(name, {}).values())
        self._faulted.discard(name)
        for request in list(self._by_known_name.get(name, {}).values()):
            if request.model != model:
                self.leave(request)
                again.append(request)
        return again

    def resume_model(self, model: str) -> list[Request]:
        """Those that waited for it."""
        self._faulted.discard(model)
        resumed = list(self._by_model.pop(model, {}).values())
        for request in resumed:
            self._forget_name_of(request)
        return resumed

    def expect(self, model: str, ready_in_ms: int) -> None:
        """Requests that cannot wait as long are refused, now and later."""
        self._ready_s[model] = ready_s = _now_s() + ready_in_ms / 1000
        for request in list(self._by_model.get(model, {}).values()):
            if request.deadline_s < ready_s:
                self._refuse_parked(request, self._too_late(model))

    def refuse(self, model: str, answer: Answer, cache_ms: int) -> None:
        """Those that wait now, and for so long those that come."""
        if cache_ms:
            self._refused_models[model] = _Refusal(answer, _now_s() + cache_ms / 1000)
        for request in list(self._by_model.get(model, {}).values()):
            self._refuse_parked(request, answer)

    def refuse_name(self, name: Name, answer: Answer, cache_ms: int) -> None:
        """As `refuse`, of a name."""
        if cache_ms:
            self._refused_names.pop(name, None)
            self._refused_names[name] = _Refusal(answer, _now_s() + cache_ms / 1000)
            if len(self._refused_names) > REFUSED_NAMES_MAX:
                del self._refused_names[next(iter(self._refused_names))]
        self._faulted.discard(name)
        for request in list(self._by_unknown_name.pop(name, {}).values()):
            self._finish(request, answer)

    def forget(self, model: str) -> None:
        """What was expected of a model, or why it is refused."""
        self._refused_models.pop(model, None)
        self._ready_s.pop(model, None)

    def waiting(self) -> list[Waiting]:
        """A row for each model that requests wait for."""
        now_s = _now_s()
        return [
            Waiting(
                model,
                len(parked),
                round((now_s - min(request.begun_s for request in parked.values())) * 1000),
                round((max(request.deadline_s for request in parked.values()) - now_s) * 1000),
            )
            for model, parked in self._by_model.items()
        ]

    def _too_late(self, model: str) -> Answer:
        retry_ms = max(round((self._ready_s[model] - _now_s()) * 1000), 0)
        return Answer(Code.RESOURCE_EXHAUSTED, "cannot be ready in time", model, retry_ms)

    def _refuse_parked(self, request: Request, answer: Answer) -> None:
        """Answering is not abandoning: no event for it."""
        parked = self._by_model.get(request.model, {})
        if parked.pop(id(request), None) is not None:
            self._forget_name_of(request)
        if not parked:
            self._by_model.pop(request.model, None)
            self._faulted.discard(request.model)
        self._finish(request, answer)

    def _forget_name_of(self, request: Request) -> None:
        others = self._by_known_name[request.name]
        del others[id(request)]
        if not others:
            del self._by_known_name[request.name]


def _fault(name: Name, model: str, parked: dict[int, Request]) -> Fault:
    now_s = _now_s()
    deadlines_s = [request.deadline_s - now_s for request in parked.values()]
    return Fault(name, model, len(parked), round(min(deadlines_s) * 1000), round(max(deadlines_s) * 1000))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
