"""Somebody who registers models all the time, and remembers what was acknowledged: nothing of that may be lost."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from bench.reliability.cluster import Member

EVERY_S = 0.5
TIMEOUT_S = 10.0
FOUND_S = 15.0


@dataclass(frozen=True, slots=True)
class Registered:
    """How many registrations were tried and acknowledged, and which of those cannot be found in which instance."""

    tried: int
    acknowledged: int
    lost: Sequence[str]


class Registering:
    """A context: registers while it is entered, through one running instance after the other."""

    def __init__(self, members: Callable[[], Sequence[Member]], prefix: str, path: str) -> None:
        self._members = members
        self._prefix = prefix
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registering")
        self._acknowledged: list[str] = []
        self._tried = 0

    def __enter__(self) -> Registering:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(TIMEOUT_S + 5)

    def _run(self) -> None:
        for number in itertools.count():
            if self._ended.wait(EVERY_S):
                return
            if members := self._members():
                self._try(f"{self._prefix}-{number}", members[number % len(members)])

    def _try(self, id: str, member: Member) -> None:
        self._tried += 1
        body = {"type": "sklearn", "path": self._path}
        try:
            answer = httpx.put(f"{member.product.ops}/models/{id}", json=body, timeout=TIMEOUT_S)
        except httpx.TransportError:
            return  # whether it was registered is unknown, so it is not counted on
        if answer.is_success:
            self._acknowledged.append(id)

    def look(self, members: Sequence[Member]) -> Registered:
        """Ask each instance for all that was acknowledged, for as long as a mirror may be late; then unregister it."""
        lost = [
            f"{id} in {member}"
            for member in members
            for id in self._acknowledged
            if not _found(member, id, time.monotonic() + FOUND_S)
        ]
        for id in self._acknowledged:
            httpx.delete(f"{members[0].product.ops}/models/{id}", timeout=TIMEOUT_S).raise_for_status()
        return Registered(self._tried, len(self._acknowledged), lost)


def _found(member: Member, id: str, ends_s: float) -> bool:
    while True:
        answer = httpx.get(f"{member.product.ops}/models/{id}", timeout=TIMEOUT_S)
        if answer.is_success or time.monotonic() > ends_s:
            return answer.is_success
        time.sleep(0.1)
