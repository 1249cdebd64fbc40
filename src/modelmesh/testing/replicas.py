"""The replicas the simulator's data plane knows: what is in flight there, whether they retire, how much they are used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from modelmesh.dataplane.protocol import Event, NotHere, Replica, Retired, Route, Usage
from modelmesh.testing.requests import Request


@dataclass(eq=False, slots=True)
class KnownReplica:
    """A replica from its first publication on."""

    id: int
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

    @property
    def acquirable(self) -> bool:
        return not (self.token or self.not_here)


class Replicas:
    """Those of the routes in force, and others as long as anything of them is in flight or untold. `emit` is told of what
    retired and of what is not where it was believed."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self.routes: dict[str, tuple[Replica, ...]] = {}
        self._known: dict[int, KnownReplica] = {}
        self._dirty: dict[int, None] = {}

    def publish(self, route: Route) -> None:
        """Put it in force; its replicas can be acquired, whatever was so before."""
        listed = {replica.id for replica in route.replicas}
        for old in self.routes.pop(route.model, ()):
            if old.id not in listed:
                self._forget_if_idle(old.id)
        if route.replicas:
            self.routes[route.model] = route.replicas
        for row in route.replicas:
            known = self._known.setdefault(
                row.id, KnownReplica(row.id, route.model, row.target_id, row.max_concurrency)
            )
            known.token, known.not_here = 0, False
            if known.retire_timer is not None:
                known.retire_timer.cancel()
                known.retire_timer = None

    def of(self, model: str) -> list[KnownReplica]:
        """Those its route names, in that order."""
        return [self._known[row.id] for row in self.routes.get(model, ())]

    def at(self, target_id: int) -> list[KnownReplica]:
        return [replica for replica in self._known.values() if replica.target_id == target_id]

    def n_in_flight(self, replica_id: int | None = None) -> int:
        """Requests at this replica, or at all of them."""
        if replica_id is None:
            return sum(len(replica.in_flight) for replica in self._known.values())
        replica = self._known.get(replica_id)
        return 0 if replica is None else len(replica.in_flight)

    def begin(self, request: Request, replica: KnownReplica) -> None:
        request.replica_id = replica.id
        replica.in_flight[id(request)] = request
        self._dirty[replica.id] = None

    def end(self, request: Request) -> KnownReplica | None:
        """Where it was in flight; None if it was nowhere."""
        replica_id, request.replica_id = request.replica_id, 0
        replica = self._known.get(replica_id)
        if replica is None or replica.in_flight.pop(id(request), None) is None:
            return None
        self._dirty[replica_id] = None
        self._retire_if_idle(replica)
        return replica

    def deny(self, replica: KnownReplica) -> None:
        """Who was asked has it no more."""
        if not replica.not_here:
            replica.not_here = True
            self._emit(NotHere(replica.model, replica.id))

    def retire(self, replica_id: int, token: int, timeout_ms: int) -> KnownReplica | None:
        """Acquire it no more, and tell when nothing is in flight there or the time is over. None for an unknown one."""
        replica = self._known.get(replica_id)
        if replica is None:
            self._emit(Retired(replica_id, token, True))
            return None
        if replica.retire_timer is not None:
            replica.retire_timer.cancel()
        replica.token = token
        loop = asyncio.get_running_loop()
        replica.retire_timer = loop.call_later(timeout_ms / 1000, self._time_out, replica_id, token)
        self._retire_if_idle(replica)
        return replica

    def take_usage(self) -> list[Usage]:
        """Of those used since the last call, or in use."""
        dirty, self._dirty = self._dirty, {}
        now_s = asyncio.get_running_loop().time()
        rows = []
        for replica_id in dirty:
            replica = self._known.get(replica_id)
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

    def _retire_if_idle(self, replica: KnownReplica) -> None:
        if replica.retire_timer is not None and not replica.in_flight:
            replica.retire_timer.cancel()
            replica.retire_timer = None
            self._emit(Retired(replica.id, replica.token, True))

    def _time_out(self, replica_id: int, token: int) -> None:
        replica = self._known.get(replica_id)
        if replica is not None and replica.token == token and replica.retire_timer is not None:
            replica.retire_timer = None
            self._emit(Retired(replica_id, token, False))

    def _forget_if_idle(self, replica_id: int) -> None:
        replica = self._known.get(replica_id)
        if replica is None or replica.in_flight or replica.retire_timer is not None:
            return
        listed = any(row.id == replica_id for row in self.routes.get(replica.model, ()))
        if replica_id not in self._dirty and not listed:
            del self._known[replica_id]
