"""A data plane without sockets: requests are calls, model servers are a question to the caller.

It parks, resumes, refuses, retires and loses as `dataplane.protocol` says, under the time of the running loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Final, NamedTuple, Protocol

from modelmesh.dataplane.protocol import (
    Abandoned,
    Addresses,
    Event,
    Fault,
    Histogram,
    MethodRule,
    Name,
    NameKind,
    NotHere,
    Payload,
    PeerTls,
    Queueing,
    RelayStats,
    Replica,
    Retired,
    Route,
    Split,
    Target,
    TargetBack,
    TargetLost,
    Tls,
    Usage,
    Waiting,
)
from modelmesh.errors import Code
from modelmesh.testing.gates import Gates

REFUSED_NAMES_MAX: Final = 10_000
GOLDEN: Final = 0x9E3779B97F4A7C15
"""As in the relay: the turns of a canary are spread as evenly as can be."""
MOVES_MAX: Final = 3
"""How many silent instances a request leaves."""
GIVEN_UP_S: Final = 10.0
"""After that long without a word the connection to another instance is given up."""


class Wire(Protocol):
    """How the data plane reaches others, for targets that are instances."""

    def dial(self, address: str) -> FakeDataPlane | None:
        """The data plane there, or None while nothing said to it is answered."""

    def delay(self) -> float:
        """Seconds one way."""


NOT_HERE: Final = "mm-not-here"
"""What a forwarded request is told where no copy is."""


class Answer(NamedTuple):
    """What a client got. `model` is the concrete model that served it, or was asked to."""

    code: Code
    message: str = ""
    model: str = ""
    retry_after_ms: int = -1


@dataclass(eq=False, slots=True)
class Request:
    """One call of a client. `answer` is set exactly once."""

    name: Name
    deadline_s: float
    execution_s: float
    answer: asyncio.Future[Answer]
    begun_s: float
    model: str = ""
    replica_id: int = 0
    crashes: int = 0
    left: list[int] = field(default_factory=list)
    """Silent instances it did not wait for, as targets."""
    forwarded: bool = False
    """It came from another instance: it is served here or not at all."""
    canary: bool | None = None
    """Whether it is for the canary of a name that stands for two models; None: it has not looked."""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def cancel(self) -> None:
        """The client goes away."""
        self.answer.cancel()


@dataclass(slots=True)
class _Replica:
    """A replica the data plane knows of, from its first publication on."""

    model: str
    target_id: int
    max_concurrency: int
    in_flight: dict[int, Request] = field(default_factory=dict)
    token: int = 0
    """Of a retirement that runs or ended; 0: acquirable."""
    retire_timer: asyncio.TimerHandle | None = None
    not_here: bool = False
    requests: int = 0
    errors: int = 0
    execution_us: int = 0
    last_used_s: float = 0.0
    free_s: float = 0.0
    """When it has executed all that it was given."""

    @property
    def full(self) -> bool:
        return 0 < self.max_concurrency <= len(self.in_flight)


class _Refusal(NamedTuple):
    answer: Answer
    until_s: float


class FakeDataPlane:
    """`holds(model, replica_id)` says whether the model server has that replica. `wake` is called, from the loop, when events
    wait; without it the descriptor of `fileno` is readable."""

    def __init__(
        self,
        holds: Callable[[str, int], bool] = lambda model, replica: True,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self._holds = holds
        self.wake = wake
        self.network: Wire | None = None
        self._fd = -1
        self._events: list[Event] = []
        self._targets: dict[int, Target] = {}
        """What they list as methods does not matter: the requests here have none."""
        self._lost: dict[int, asyncio.TimerHandle | None] = {}
        """Target -> when a silent one will be given up; None: it is."""
        self._held_back: dict[int, list[Callable[[], None]]] = {}
        """Target -> what passes its connection once something does again."""
        self.routes: dict[str, tuple[Replica, ...]] = {}
        self.publications = 0
        """How often routes were published."""
        self._replicas: dict[int, _Replica] = {}
        self.names: dict[Name, str | Split] = {}
        self._turns: dict[Name, int] = {}
        """How often a name that stands for two models was asked for."""
        self.answers: Callable[[str], Code] = lambda model: Code.OK
        """What the server of a model answers the next request."""
        self._refused_names: dict[Name, _Refusal] = {}
        self._refused_models: dict[str, _Refusal] = {}
        self._ready_s: dict[str, float] = {}
        self._parked_names: dict[Name, dict[int, Request]] = {}
        self._parked_models: dict[str, dict[int, Request]] = {}
        self._parked_by_name: dict[Name, dict[int, Request]] = {}
        """The same requests as in `_parked_models`."""
        self._gates: Gates[Request] = Gates(lambda *row: self._emit(Queueing(*row)))
        self._faulted: set[Name | str] = set()
        self._dirty: dict[int, None] = {}
        self.requests: dict[Request, None] = {}
        """Those not answered yet."""
        self._draining = False
        self.method_rules: tuple[MethodRule, ...] | None = None
        """Those in force; they do not matter here either."""
        self.allows_other_methods = True
        self.tls: Tls | None = None
        """What was set last, as `peer_tls`; it has no ports to serve by it."""
        self.peer_tls: PeerTls | None = None
        self.payload_filters: list[tuple[str, str]] = []
        self.payloads: Queue[Payload] = Queue()
        """What `take_payload` gives; its own requests have none."""
        self.payloads_dropped = 0
        self.serial = False
        """Replicas execute one request after the other, as workers do, and report what each took."""
        self.violations: list[str] = []

    # --- the client's side ----------------------------------------------------------------------------------

    def request(self, name: Name, timeout_s: float, execution_s: float = 0.001) -> Request:
        """Begin a call; await its `answer`."""
        loop = asyncio.get_running_loop()
        request = Request(name, loop.time() + timeout_s, execution_s, loop.create_future(), loop.time())
        if self._draining:
            request.answer.set_result(Answer(Code.UNAVAILABLE, "draining"))
            return request
        self._begin(request)
        self._resolve(request)
        return request

    def forward(self, model: str, timeout_s: float, execution_s: float) -> Request:
        """A request another instance sends on: answered from the copies here, else with NOT_HERE; also while draining."""
        loop = asyncio.get_running_loop()
        request = Request(
            Name(NameKind.MODEL, model), loop.time() + timeout_s, execution_s, loop.create_future(), loop.time(),
            model, forwarded=True,
        )  # fmt: skip
        self._begin(request)
        self._route(request)
        return request

    def _begin(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        self.requests[request] = None
        expiry = loop.call_at(request.deadline_s, self._finish, request, Answer(Code.DEADLINE_EXCEEDED))
        request.timers.append(expiry)
        request.answer.add_done_callback(lambda _: self._left(request))

    def _finish(self, request: Request, answer: Answer) -> None:
        if request.answer.cancelled():
            return
        if request.answer.done():
            self.violations.append(f"request for {request.name} answered twice: {answer}")
            return
        request.answer.set_result(answer)
        self._left(request)

    def _left(self, request: Request) -> None:
        """It is answered or cancelled: nothing of it may stay behind. Idempotent."""
        for timer in request.timers:
            timer.cancel()
        request.timers.clear()
        self.requests.pop(request, None)
        self._unpark(request)
        self._gates.leave(request)
        self._end_execution(request)

    def _unpark(self, request: Request) -> None:
        waiting = self._parked_names.get(request.name)
        if waiting is not None and id(request) in waiting:
            del waiting[id(request)]
        if waiting is not None and not waiting:
            del self._parked_names[request.name]
            if request.name in self._faulted:
                self._faulted.discard(request.name)
                self._emit(Abandoned(request.name, ""))
        parked = self._parked_models.get(request.model)
        if parked is not None and id(request) in parked:
            del parked[id(request)]
            self._forget_parked(request)
        if parked is not None and not parked:
            del self._parked_models[request.model]
            if request.model in self._faulted:
                self._faulted.discard(request.model)
                self._emit(Abandoned(request.name, request.model))

    def _forget_parked(self, request: Request) -> None:
        others = self._parked_by_name[request.name]
        del others[id(request)]
        if not others:
            del self._parked_by_name[request.name]

    # --- a request's way ------------------------------------------------------------------------------------

    def _resolve(self, request: Request) -> None:
        name, now_s = request.name, self._now_s()
        if request.forwarded:
            self._route(request)
            return
        meaning = self.names.get(name)
        if meaning is not None:
            request.model = self._meant(request, meaning)
            self._route(request)
            return
        refusal = self._refused_names.get(name)
        if refusal is not None and now_s < refusal.until_s:
            self._finish(request, refusal.answer)
            return
        request.model = ""
        self._parked_names.setdefault(name, {})[id(request)] = request
        if name not in self._faulted:
            self._faulted.add(name)
            self._emit(self._fault(name, "", self._parked_names[name]))

    def _meant(self, request: Request, meaning: str | Split) -> str:
        """The model a request is for. Whether that is the canary is decided once; without a copy it is so no more."""
        if isinstance(meaning, str):
            return meaning
        if request.canary is None:
            turn = self._turns[request.name] = self._turns.get(request.name, -1) + 1
            request.canary = (turn * GOLDEN + 2**63) % 2**64 < meaning.share * 2**64
        request.model = meaning.canary
        request.canary = request.canary and bool(self._usable(request))
        return meaning.canary if request.canary else meaning.model

    def _route(self, request: Request) -> None:
        """To the replica with the fewest requests, the first of several; where all are full, it waits for a slot."""
        model, now_s = request.model, self._now_s()
        if usable := self._usable(request):
            replica_id, replica = min(usable, key=lambda each: (each[1].full, len(each[1].in_flight)))
            if replica.full:
                self._gates.join(request)
            else:
                self._execute(request, replica_id, replica)
            return
        refusal = self._refused_models.get(model)
        if request.forwarded:
            self._finish(request, Answer(Code.UNAVAILABLE, NOT_HERE, model))
        elif refusal is not None and now_s < refusal.until_s:
            self._finish(request, refusal.answer)
        elif request.deadline_s < self._ready_s.get(model, 0.0):
            self._finish(request, self._too_late(model))
        else:
            parked = self._parked_models.setdefault(model, {})
            parked[id(request)] = self._parked_by_name.setdefault(request.name, {})[id(request)] = request
            if model not in self._faulted:
                self._faulted.add(model)
                self._emit(self._fault(request.name, model, parked))

    def _usable(self, request: Request) -> list[tuple[int, _Replica]]:
        known = [(replica.id, self._replicas[replica.id]) for replica in self.routes.get(request.model, ())]
        return [
            (id, replica)
            for id, replica in known
            if not (request.forwarded and self._is_peer(replica.target_id))
            and not (replica.token or replica.not_here)
            and self._reachable(replica.target_id)
        ]

    def _kick(self, model: str) -> None:
        """A slot may be free, or the replicas others than before: whoever waits for one looks again."""
        while (first := self._gates.first(model)) is not None:
            usable = self._usable(first)
            if usable and all(replica.full for _, replica in usable):
                return
            self._gates.leave(first)
            self._route(first)

    def _execute(self, request: Request, replica_id: int, replica: _Replica) -> None:
        request.replica_id = replica_id
        replica.in_flight[id(request)] = request
        self._dirty[replica_id] = None
        loop = asyncio.get_running_loop()
        target = self._targets.get(replica.target_id)
        if target is not None and target.peer and self.network is not None:
            delay_s = self.network.delay()
            request.timers.append(loop.call_later(delay_s, self._sent, request, replica_id, target))
            return
        begins_s = max(loop.time(), replica.free_s) if self.serial else loop.time()
        replica.free_s = begins_s + request.execution_s
        request.timers.append(loop.call_at(replica.free_s, self._executed, request, replica_id))

    def _is_peer(self, target_id: int) -> bool:
        target = self._targets.get(target_id)
        return target is not None and target.peer

    def _sent(self, request: Request, replica_id: int, target: Target) -> None:
        """It arrives at another instance, now or once something passes again."""
        if self.network is None or request.replica_id != replica_id:
            return
        there = self.network.dial(target.address)
        if there is None:
            self._hold_back(target, lambda: self._sent(request, replica_id, target))
            return
        left_s = request.deadline_s - self._now_s()
        model = self._replicas[replica_id].model
        sent = there.forward(model, left_s, request.execution_s)
        sent.answer.add_done_callback(lambda answer: self._replied(request, replica_id, target, answer))

    def _hold_back(self, target: Target, passes: Callable[[], None]) -> None:
        self._held_back.setdefault(target.id, []).append(passes)

    def _replied(
        self, request: Request, replica_id: int, target: Target, answer: asyncio.Future[Answer]
    ) -> None:
        if answer.cancelled() or self.network is None or request.replica_id != replica_id:
            return
        if self.network.dial(target.address) is None:
            self._hold_back(target, lambda: self._replied(request, replica_id, target, answer))
            return
        replica, result = self._replicas[replica_id], answer.result()
        self._end_execution(request)
        if request.answer.done():
            return
        if result.message == NOT_HERE:
            if not replica.not_here:
                replica.not_here = True
                self._emit(NotHere(replica.model, replica_id))
            self._resolve(request)
            return
        replica.requests += 1
        replica.last_used_s = self._now_s()
        self._finish(request, result)

    def _executed(self, request: Request, replica_id: int) -> None:
        replica = self._replicas[replica_id]
        there = self._holds(replica.model, replica_id)
        self._end_execution(request)
        if request.answer.done():
            return
        if not there:
            if not replica.not_here:
                replica.not_here = True
                self._emit(NotHere(replica.model, replica_id))
            self._resolve(request)
            return
        code = self.answers(replica.model)
        replica.requests += 1
        replica.errors += code is not Code.OK
        replica.execution_us += round(request.execution_s * 1e6) if self.serial else 0
        replica.last_used_s = self._now_s()
        self._finish(request, Answer(code, "", request.model))

    def _end_execution(self, request: Request) -> None:
        replica_id, request.replica_id = request.replica_id, 0
        replica = self._replicas.get(replica_id)
        if replica is None or replica.in_flight.pop(id(request), None) is None:
            return
        self._dirty[replica_id] = None
        self._retire_if_idle(replica_id, replica)
        self._kick(replica.model)

    # --- DataPlane ------------------------------------------------------------------------------------------

    def start(self) -> Addresses:
        return Addresses("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")

    def fileno(self) -> int:
        if self._fd < 0:
            self._fd = os.eventfd(1 if self._events else 0, os.EFD_NONBLOCK)
        return self._fd

    def take_events(self) -> list[Event]:
        events, self._events = self._events, []
        if self._fd >= 0 and events:
            os.eventfd_read(self._fd)
        return events

    def set_targets(self, add: Sequence[Target], remove: Sequence[int]) -> None:
        for target in add:
            self._targets[target.id] = target
        for target_id in remove:
            self._targets.pop(target_id, None)
            self._lose_requests(target_id)
            self._forget_loss(target_id)

    def publish(self, routes: Sequence[Route]) -> None:
        self.publications += 1
        for route in routes:
            for old in self.routes.pop(route.model, ()):
                if old.id not in {replica.id for replica in route.replicas}:
                    self._forget_if_idle(old.id)
            if route.replicas:
                self.routes[route.model] = route.replicas
                self._refused_models.pop(route.model, None)
                self._ready_s.pop(route.model, None)
            for replica in route.replicas:
                if replica.target_id not in self._targets:
                    self.violations.append(f"route of {route.model} names unknown target {replica.target_id}")
                known = self._replicas.setdefault(
                    replica.id, _Replica(route.model, replica.target_id, replica.max_concurrency)
                )
                known.token, known.not_here = 0, False
                if known.retire_timer is not None:
                    known.retire_timer.cancel()
                    known.retire_timer = None
            if route.replicas:
                self._faulted.discard(route.model)
                for request in list(self._parked_models.pop(route.model, {}).values()):
                    self._forget_parked(request)
                    self._route(request)
            self._kick(route.model)

    def publish_names(self, names: Sequence[tuple[Name, str | Split]]) -> None:
        for name, meaning in names:
            self.names[name] = meaning
            self._turns.pop(name, None)
            self._refused_names.pop(name, None)
            self._resolve_again(name)

    def forget_names(self, names: Sequence[Name]) -> None:
        for name in names:
            self.names.pop(name, None)
            self._refused_names.pop(name, None)
            self._resolve_again(name)

    def _resolve_again(self, name: Name) -> None:
        again = list(self._parked_names.pop(name, {}).values())
        self._faulted.discard(name)
        for request in list(self._parked_by_name.get(name, {}).values()):
            meaning = self.names.get(name)
            if request.model != (meaning.model if isinstance(meaning, Split) else meaning):
                self._unpark(request)
                again.append(request)
        for request in again:
            self._resolve(request)

    def set_method_rules(self, rules: Sequence[MethodRule] | None, allow_others: bool) -> None:
        self.method_rules = None if rules is None else tuple(rules)
        self.allows_other_methods = rules is None or allow_others

    def set_tls(self, tls: Tls) -> None:
        self.tls = tls

    def set_peer_tls(self, tls: PeerTls) -> None:
        self.peer_tls = tls

    def set_payload_filters(
        self, filters: Sequence[tuple[str, str]], payloads_max: int, bytes_max: int
    ) -> None:
        self.payload_filters = list(filters)

    def take_payload(self, timeout_ms: int) -> Payload | None:
        try:
            return self.payloads.get(timeout=timeout_ms / 1000)
        except Empty:
            return None

    def retire(self, replicas: Sequence[tuple[int, int]], timeout_ms: int) -> None:
        loop = asyncio.get_running_loop()
        for replica_id, token in replicas:
            replica = self._replicas.get(replica_id)
            if replica is None:
                self._emit(Retired(replica_id, token, True))
                continue
            if replica.retire_timer is not None:
                replica.retire_timer.cancel()
            replica.token = token
            replica.retire_timer = loop.call_later(
                timeout_ms / 1000, self._retire_timed_out, replica_id, token
            )
            self._retire_if_idle(replica_id, replica)
            self._kick(replica.model)

    def _retire_if_idle(self, replica_id: int, replica: _Replica) -> None:
        if replica.retire_timer is not None and not replica.in_flight:
            replica.retire_timer.cancel()
            replica.retire_timer = None
            self._emit(Retired(replica_id, replica.token, True))
        elif not replica.in_flight:
            self._forget_if_idle(replica_id)

    def _retire_timed_out(self, replica_id: int, token: int) -> None:
        replica = self._replicas.get(replica_id)
        if replica is not None and replica.token == token and replica.retire_timer is not None:
            replica.retire_timer = None
            self._emit(Retired(replica_id, token, False))

    def _forget_if_idle(self, replica_id: int) -> None:
        replica = self._replicas.get(replica_id)
        if (
            replica is None
            or replica.in_flight
            or replica_id in self._dirty
            or replica.retire_timer is not None
        ):
            return
        if all(listed.id != replica_id for listed in self.routes.get(replica.model, ())):
            del self._replicas[replica_id]

    def expect(self, model: str, ready_in_ms: int) -> None:
        ready_s = self._now_s() + ready_in_ms / 1000
        self._ready_s[model] = ready_s
        for request in [r for r in self._parked_models.get(model, {}).values() if r.deadline_s < ready_s]:
            self._answer_parked(request, self._too_late(model))

    def _too_late(self, model: str) -> Answer:
        retry_ms = max(round((self._ready_s[model] - self._now_s()) * 1000), 0)
        return Answer(Code.RESOURCE_EXHAUSTED, "cannot be ready in time", model, retry_ms)

    def _answer_parked(self, request: Request, answer: Answer) -> None:
        """Answering is not abandoning: no event for it."""
        parked = self._parked_models.get(request.model, {})
        if parked.pop(id(request), None) is not None:
            self._forget_parked(request)
        if not parked:
            self._parked_models.pop(request.model, None)
            self._faulted.discard(request.model)
        self._finish(request, answer)

    def refuse(
        self, model: str, code: Code, message: str, retry_after_ms: int, cache_ms: int, http_status: int = 0
    ) -> None:
        answer = Answer(code, message, model, retry_after_ms)
        if cache_ms:
            self._refused_models[model] = _Refusal(answer, self._now_s() + cache_ms / 1000)
        for request in list(self._parked_models.get(model, {}).values()):
            self._answer_parked(request, answer)

    def refuse_name(
        self, name: Name, code: Code, message: str, retry_after_ms: int, cache_ms: int, http_status: int = 0
    ) -> None:
        answer = Answer(code, message, name.name, retry_after_ms)
        if cache_ms:
            self._refused_names.pop(name, None)
            self._refused_names[name] = _Refusal(answer, self._now_s() + cache_ms / 1000)
            if len(self._refused_names) > REFUSED_NAMES_MAX:
                del self._refused_names[next(iter(self._refused_names))]
        self._faulted.discard(name)
        for request in list(self._parked_names.pop(name, {}).values()):
            self._finish(request, answer)

    def take_waiting(self) -> list[Waiting]:
        now_s = self._now_s()
        return [
            Waiting(
                model,
                len(parked),
                round((now_s - min(request.begun_s for request in parked.values())) * 1000),
                round((max(request.deadline_s for request in parked.values()) - now_s) * 1000),
            )
            for model, parked in self._parked_models.items()
        ]

    def take_usage(self) -> list[Usage]:
        dirty, self._dirty = self._dirty, {}
        now_s = self._now_s()
        rows = []
        for replica_id in dirty:
            replica = self._replicas.get(replica_id)
            if replica is None:
                continue
            ago_ms = round((now_s - replica.last_used_s) * 1000) if replica.requests else 0
            rows.append(
                Usage(
                    replica.model, replica_id, replica.requests, replica.errors, len(replica.in_flight),
                    replica.execution_us, ago_ms,
                )
            )  # fmt: skip
            replica.requests = replica.errors = replica.execution_us = 0
            if replica.in_flight:
                self._dirty[replica_id] = None
            else:
                self._forget_if_idle(replica_id)
        return rows

    def histograms(self) -> list[Histogram]:
        return []

    def stats(self) -> RelayStats:
        parked = sum(map(len, self._parked_models.values())) + sum(map(len, self._parked_names.values()))
        return RelayStats(
            in_flight=sum(len(replica.in_flight) for replica in self._replicas.values()) + len(self._gates),
            parked_requests=parked,
            routes=len(self.routes),
            names=len(self.names),
            counters={"payloads_dropped": self.payloads_dropped},
        )

    def drain(self, timeout_ms: int) -> None:
        self._draining = True

    def stop(self) -> None:
        for request in list(self.requests):
            self._finish(request, Answer(Code.UNAVAILABLE, "stopped"))
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- the script -----------------------------------------------------------------------------------------

    def lose_target(self, target_id: int, silent: bool = False) -> None:
        """All connections to a target break. `silent`: they do not, but it is an instance that says nothing; then requests that
        left it before wait for it."""
        known = target_id in self._lost
        if target_id not in self._targets or (silent and known):
            return
        if silent:
            loop = asyncio.get_running_loop()
            self._lost[target_id] = loop.call_later(GIVEN_UP_S, self.lose_target, target_id)
        else:
            self._forget_loss(target_id)
            self._lost[target_id] = None
        if not known:
            self._emit(TargetLost(target_id))
        self._lose_requests(target_id, silent)

    def _forget_loss(self, target_id: int) -> list[Callable[[], None]]:
        """Returns what was held back."""
        give_up = self._lost.pop(target_id, None)
        if give_up is not None:
            give_up.cancel()
        return self._held_back.pop(target_id, [])

    def find_target(self, target_id: int) -> None:
        """A target answers again: who waits for its models goes there, and what was held back passes."""
        lost = target_id in self._lost
        held_back = self._forget_loss(target_id)
        if lost:
            self._emit(TargetBack(target_id))
            self._kick_at(target_id)
            for model in [model for model in self._parked_models if self._leads_to(model, target_id)]:
                self._faulted.discard(model)
                for request in list(self._parked_models.pop(model).values()):
                    self._forget_parked(request)
                    self._route(request)
        for passes in held_back:
            passes()

    def _leads_to(self, model: str, target_id: int) -> bool:
        return any(replica.target_id == target_id for replica in self.routes.get(model, ()))

    def lose_address(self, address: str, silent: bool = False) -> None:
        """As `lose_target`, of another instance."""
        for target in [target for target in self._targets.values() if target.address == address]:
            self.lose_target(target.id, silent)

    def find_address(self, address: str) -> None:
        """As `find_target`, of another instance."""
        for target in [target for target in self._targets.values() if target.address == address]:
            self.find_target(target.id)

    def in_flight(self, replica_id: int) -> int:
        replica = self._replicas.get(replica_id)
        return 0 if replica is None else len(replica.in_flight)

    def _kick_at(self, target_id: int) -> None:
        models = [each.model for each in self._replicas.values() if each.target_id == target_id]
        for model in dict.fromkeys(models):
            self._kick(model)

    def _lose_requests(self, target_id: int, silent: bool = False) -> None:
        """What was in flight there parks again, once per request; `silent`: once per instance, and at most `MOVES_MAX` times."""
        for replica_id, replica in list(self._replicas.items()):
            if replica.target_id != target_id:
                continue
            for request in list(replica.in_flight.values()):
                if silent and (target_id in request.left or len(request.left) >= MOVES_MAX):
                    continue
                for timer in request.timers[1:]:
                    timer.cancel()
                del request.timers[1:]
                self._end_execution(request)
                if silent:
                    request.left.append(target_id)
                else:
                    request.crashes += 1
                if request.crashes > 1:
                    self._finish(request, Answer(Code.UNAVAILABLE, "lost twice", request.model))
                else:
                    self._resolve(request)
            self._retire_if_idle(replica_id, replica)
        self._kick_at(target_id)

    def _reachable(self, target_id: int) -> bool:
        return target_id in self._targets and target_id not in self._lost

    def _fault(self, name: Name, model: str, parked: dict[int, Request]) -> Fault:
        now_s = self._now_s()
        deadlines_s = [request.deadline_s - now_s for request in parked.values()]
        return Fault(name, model, len(parked), round(min(deadlines_s) * 1000), round(max(deadlines_s) * 1000))

    def _emit(self, event: Event) -> None:
        self._events.append(event)
        if len(self._events) == 1:
            if self.wake is not None:
                asyncio.get_running_loop().call_soon(self.wake)
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()
