"""A data plane without sockets: requests are calls, model servers are a question to the caller.

It parks, resumes, refuses, retires and loses as `dataplane.protocol` says, under the time of the running loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from queue import Empty, Queue
from typing import Final, Protocol

from modelmesh.dataplane.protocol import (
    Addresses,
    Event,
    Histogram,
    MethodRule,
    Name,
    NameKind,
    Payload,
    PeerTls,
    Queueing,
    RelayStats,
    Replica,
    Route,
    Split,
    Target,
    Tls,
    Usage,
    Waiting,
)
from modelmesh.errors import Code
from modelmesh.testing.gates import Gates
from modelmesh.testing.parking import Parking
from modelmesh.testing.replicas import KnownReplica, Replicas
from modelmesh.testing.requests import Answer, Request
from modelmesh.testing.targets import Targets

GOLDEN: Final = 0x9E3779B97F4A7C15
"""As in the relay: the turns of a canary are spread as evenly as can be."""
MOVES_MAX: Final = 3
"""How many silent instances a request leaves."""
NOT_HERE: Final = "mm-not-here"
"""What a forwarded request is told where no copy is."""


class Wire(Protocol):
    """How the data plane reaches others, for targets that are instances."""

    def dial(self, address: str) -> FakeDataPlane | None:
        """The data plane there, or None while nothing said to it is answered."""

    def delay(self) -> float:
        """Seconds one way."""


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
        self._targets = Targets(self._emit, self.lose_target)
        self._replicas = Replicas(self._emit)
        self.publications = 0
        """How often routes were published."""
        self.names: dict[Name, str | Split] = {}
        self._turns: dict[Name, int] = {}
        """How often a name that stands for two models was asked for."""
        self.answers: Callable[[str], Code] = lambda model: Code.OK
        """What the server of a model answers the next request."""
        self._parking = Parking(self._emit, self._finish)
        self._gates: Gates[Request] = Gates(lambda *row: self._emit(Queueing(*row)))
        self.requests: dict[Request, None] = {}
        """Those not answered yet."""
        self._draining = False
        self.method_rules: tuple[MethodRule, ...] | None = None
        """Those in force; they do not matter here: the requests have no method."""
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

    @property
    def routes(self) -> dict[str, tuple[Replica, ...]]:
        """Those in force."""
        return self._replicas.routes

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
        self._parking.leave(request)
        self._gates.leave(request)
        self._end_execution(request)

    # --- a request's way ------------------------------------------------------------------------------------

    def _resolve(self, request: Request) -> None:
        meaning = self.names.get(request.name)
        if request.forwarded:
            self._route(request)
        elif meaning is not None:
            request.model = self._meant(request, meaning)
            self._route(request)
        else:
            self._parking.wait_for_name(request)

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
        if usable := self._usable(request):
            replica = min(usable, key=lambda each: (each.full, len(each.in_flight)))
            if replica.full:
                self._gates.join(request)
            else:
                self._execute(request, replica)
        elif request.forwarded:
            self._finish(request, Answer(Code.UNAVAILABLE, NOT_HERE, request.model))
        else:
            self._parking.wait_for_model(request)

    def _usable(self, request: Request) -> list[KnownReplica]:
        return [
            replica
            for replica in self._replicas.of(request.model)
            if not (request.forwarded and self._targets.peer(replica.target_id))
            and replica.acquirable
            and self._targets.answers(replica.target_id)
        ]

    def _kick(self, model: str) -> None:
        """A slot may be free, or the replicas others than before: whoever waits for one looks again."""
        while (first := self._gates.first(model)) is not None:
            usable = self._usable(first)
            if usable and all(replica.full for replica in usable):
                return
            self._gates.leave(first)
            self._route(first)

    def _execute(self, request: Request, replica: KnownReplica) -> None:
        self._replicas.begin(request, replica)
        loop = asyncio.get_running_loop()
        peer = self._targets.peer(replica.target_id)
        if peer is not None and self.network is not None:
            delay_s = self.network.delay()
            request.timers.append(loop.call_later(delay_s, self._sent, request, replica, peer))
            return
        begins_s = max(loop.time(), replica.free_s) if self.serial else loop.time()
        replica.free_s = begins_s + request.execution_s
        request.timers.append(loop.call_at(replica.free_s, self._executed, request, replica))

    def _sent(self, request: Request, replica: KnownReplica, peer: Target) -> None:
        """It arrives at another instance, now or once something passes again."""
        if self.network is None or request.replica_id != replica.id:
            return
        there = self.network.dial(peer.address)
        if there is None:
            self._targets.hold_back(peer.id, lambda: self._sent(request, replica, peer))
            return
        left_s = request.deadline_s - asyncio.get_running_loop().time()
        sent = there.forward(replica.model, left_s, request.execution_s)
        sent.answer.add_done_callback(lambda answer: self._replied(request, replica, peer, answer))

    def _replied(
        self, request: Request, replica: KnownReplica, peer: Target, answer: asyncio.Future[Answer]
    ) -> None:
        if answer.cancelled() or self.network is None or request.replica_id != replica.id:
            return
        if self.network.dial(peer.address) is None:
            self._targets.hold_back(peer.id, lambda: self._replied(request, replica, peer, answer))
            return
        result = answer.result()
        self._end_execution(request)
        if request.answer.done():
            return
        if result.message == NOT_HERE:
            self._replicas.deny(replica)
            self._resolve(request)
            return
        replica.requests += 1
        replica.last_used_s = asyncio.get_running_loop().time()
        self._finish(request, result)

    def _executed(self, request: Request, replica: KnownReplica) -> None:
        there = self._holds(replica.model, replica.id)
        self._end_execution(request)
        if request.answer.done():
            return
        if not there:
            self._replicas.deny(replica)
            self._resolve(request)
            return
        code = self.answers(replica.model)
        replica.requests += 1
        replica.errors += code is not Code.OK
        replica.execution_us += round(request.execution_s * 1e6) if self.serial else 0
        replica.last_used_s = asyncio.get_running_loop().time()
        self._finish(request, Answer(code, "", request.model))

    def _end_execution(self, request: Request) -> None:
        replica = self._replicas.end(request)
        if replica is not None:
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
            self._targets.add(target)
        for target_id in remove:
            self._targets.remove(target_id)
            self._lose_requests(target_id)

    def publish(self, routes: Sequence[Route]) -> None:
        self.publications += 1
        for route in routes:
            for replica in route.replicas:
                if replica.target_id not in self._targets:
                    self.violations.append(f"route of {route.model} names unknown target {replica.target_id}")
            self._replicas.publish(route)
            if route.replicas:
                self._parking.forget(route.model)
                for request in self._parking.resume_model(route.model):
                    self._route(request)
            self._kick(route.model)

    def publish_names(self, names: Sequence[tuple[Name, str | Split]]) -> None:
        for name, meaning in names:
            self.names[name] = meaning
            self._turns.pop(name, None)
            model = meaning.model if isinstance(meaning, Split) else meaning
            for request in self._parking.resume_name(name, model):
                self._resolve(request)

    def forget_names(self, names: Sequence[Name]) -> None:
        for name in names:
            self.names.pop(name, None)
            for request in self._parking.resume_name(name, None):
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
        for replica_id, token in replicas:
            replica = self._replicas.retire(replica_id, token, timeout_ms)
            if replica is not None:
                self._kick(replica.model)

    def expect(self, model: str, ready_in_ms: int) -> None:
        self._parking.expect(model, ready_in_ms)

    def refuse(
        self, model: str, code: Code, message: str, retry_after_ms: int, cache_ms: int, http_status: int = 0
    ) -> None:
        self._parking.refuse(model, Answer(code, message, model, retry_after_ms), cache_ms)

    def refuse_name(
        self, name: Name, code: Code, message: str, retry_after_ms: int, cache_ms: int, http_status: int = 0
    ) -> None:
        self._parking.refuse_name(name, Answer(code, message, name.name, retry_after_ms), cache_ms)

    def take_waiting(self) -> list[Waiting]:
        return self._parking.waiting()

    def take_usage(self) -> list[Usage]:
        return self._replicas.take_usage()

    def histograms(self) -> list[Histogram]:
        return []

    def stats(self) -> RelayStats:
        return RelayStats(
            in_flight=self._replicas.n_in_flight() + len(self._gates),
            parked_requests=len(self._parking),
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
        if self._targets.lose(target_id, silent):
            self._lose_requests(target_id, silent)

    def find_target(self, target_id: int) -> None:
        """A target answers again: who waits for its models goes there, and what was held back passes."""
        lost, held_back = self._targets.find(target_id)
        if lost:
            self._kick_at(target_id)
            for model in [model for model in self._parking.models if self._leads_to(model, target_id)]:
                for request in self._parking.resume_model(model):
                    self._route(request)
        for passes in held_back:
            passes()

    def _leads_to(self, model: str, target_id: int) -> bool:
        return any(replica.target_id == target_id for replica in self.routes.get(model, ()))

    def lose_address(self, address: str, silent: bool = False) -> None:
        """As `lose_target`, of another instance."""
        for target_id in self._targets.at(address):
            self.lose_target(target_id, silent)

    def find_address(self, address: str) -> None:
        """As `find_target`, of another instance."""
        for target_id in self._targets.at(address):
            self.find_target(target_id)

    def in_flight(self, replica_id: int) -> int:
        return self._replicas.n_in_flight(replica_id)

    def _kick_at(self, target_id: int) -> None:
        for model in dict.fromkeys(replica.model for replica in self._replicas.at(target_id)):
            self._kick(model)

    def _lose_requests(self, target_id: int, silent: bool = False) -> None:
        """What was in flight there parks again, once per request; `silent`: once per instance, and at most `MOVES_MAX` times."""
        for replica in self._replicas.at(target_id):
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
        self._kick_at(target_id)

    def _emit(self, event: Event) -> None:
        self._events.append(event)
        if len(self._events) == 1:
            if self.wake is not None:
                asyncio.get_running_loop().call_soon(self.wake)
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)
