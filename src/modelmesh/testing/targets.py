"""The targets of the simulator's data plane, and which of them answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from modelmesh.dataplane.protocol import Event, Target, TargetBack, TargetLost

GIVEN_UP_S: Final = 10.0
"""After that long without a word the connection to another instance is given up."""


class Targets:
    """`emit` is told of what is lost and found; `give_up` is called with a target that was silent for too long."""

    def __init__(self, emit: Callable[[Event], None], give_up: Callable[[int], None]) -> None:
        self._emit = emit
        self._give_up = give_up
        self._targets: dict[int, Target] = {}
        """What they list as methods does not matter: the requests here have none."""
        self._lost: dict[int, asyncio.TimerHandle | None] = {}
        """Target -> when a silent one will be given up; None: it is."""
        self._held_back: dict[int, list[Callable[[], None]]] = {}
        """Target -> what passes its connection once something does again."""

    def __contains__(self, target_id: int) -> bool:
        return target_id in self._targets

    def add(self, target: Target) -> None:
        self._targets[target.id] = target

    def remove(self, target_id: int) -> None:
        self._targets.pop(target_id, None)
        self._forget_loss(target_id)

    def peer(self, target_id: int) -> Target | None:
        """The target if it is another instance."""
        target = self._targets.get(target_id)
        return target if target is not None and target.peer else None

    def at(self, address: str) -> list[int]:
        return [target.id for target in self._targets.values() if target.address == address]

    def answers(self, target_id: int) -> bool:
        return target_id in self._targets and target_id not in self._lost

    def lose(self, target_id: int, silent: bool) -> bool:
        """Whether that is news. `silent`: it says nothing, but its connection stands."""
        known = target_id in self._lost
        if target_id not in self._targets or (silent and known):
            return False
        if silent:
            loop = asyncio.get_running_loop()
            self._lost[target_id] = loop.call_later(GIVEN_UP_S, self._give_up, target_id)
        else:
            self._forget_loss(target_id)
            self._lost[target_id] = None
        if not known:
            self._emit(TargetLost(target_id))
        return True

    def hold_back(self, target_id: int, passes: Callable[[], None]) -> None:
        """What does not get through now: `find` returns it, unless the connection breaks."""
        self._held_back.setdefault(target_id, []).append(passes)

    def find(self, target_id: int) -> tuple[bool, list[Callable[[], None]]]:
        """Whether it had been lost, and what was held back."""
        lost = target_id in self._lost
        held_back = self._forget_loss(target_id)
        if lost:
            self._emit(TargetBack(target_id))
        return lost, held_back

    def _forget_loss(self, target_id: int) -> list[Callable[[], None]]:
        give_up = self._lost.pop(target_id, None)
        if give_up is not None:
            give_up.cancel()
        return self._held_back.pop(target_id, [])
