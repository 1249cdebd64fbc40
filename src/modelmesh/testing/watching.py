"""What must hold at every moment of a story of several instances, looked at after each step of the event loop.

One instance in turn, and only when something of it changed since: what is broken stays so until its turn comes. Looking at all of
an instance costs a hundred times what a step does.
"""

from __future__ import annotations

import asyncio
from typing import Final

from modelmesh.mesh.views import State
from modelmesh.testing.clients import Clients
from modelmesh.testing.stage import Stage
from modelmesh.testing.theatre import Theatre

ANYWAY_STEPS: Final = 101
"""All is looked at so often though nothing seems to have changed."""
ROUTES_EVERY_S: Final = 0.5
WRONG_MAX_S: Final = 3.0
"""A route may lead to another instance's copy that is not loaded for so long: until its holder is heard."""


class Watching:
    """`step` after each step of the loop; problems are told to `clients`."""

    def __init__(self, theatre: Theatre, clients: Clients) -> None:
        self._theatre = theatre
        self._clients = clients
        self._turn = 0
        self._order: list[str] = []
        """Whose turn comes, the next one last."""
        self._seen: dict[str, object] = {}
        self._routes_s = 0.0
        self._wrong: dict[tuple[str, str, str], float] = {}
        """(instance, model, holder) of routes that lead to no copy, and since when."""

    def step(self) -> None:
        """Raises InvariantBroken."""
        self._turn += 1
        if not self._order:
            self._order = list(self._theatre.stages)
            self._look_further()
        stage = self._theatre.stages.get(id := self._order.pop()) if self._order else None
        if stage is not None:
            pulse = stage.mesh.pulse(), stage.dataplane.publications
            if self._seen.get(id) != pulse or self._turn % ANYWAY_STEPS == 0:
                self._seen[id] = pulse
                self._look(id, stage)
        self._clients.complain()

    def _look_further(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._routes_s + ROUTES_EVERY_S:
            self._routes_s = now_s
            self._look_at_routes(now_s)
            self._look_at_deadlines(now_s)

    def _look(self, id: str, stage: Stage) -> None:
        stage.mesh.check()
        problems = stage.runtime.violations + stage.dataplane.violations
        self._clients.note([f"{id}: {problem}" for problem in problems])
        own = set(stage.runtime.targets)
        for model, replicas in stage.dataplane.routes.items():
            if any(replica.target_id in own for replica in replicas):
                copy = stage.mesh.copy(model)
                loaded = copy is not None and copy.state is State.LOADED
                self._clients.expect(loaded, f"{id} has a route to its {model}, which is not loaded")

    def _look_at_deadlines(self, now_s: float) -> None:
        for id, stage in self._theatre.stages.items():
            for request in stage.dataplane.requests:
                alive = now_s <= request.deadline_s + 1e-6
                self._clients.expect(alive, f"{id}: {request.name} outlived its deadline")

    def _look_at_routes(self, now_s: float) -> None:
        """Routes that lead to copies of others: each is right, or has not been wrong for long while both could talk."""
        wrong = {
            (id, model, holder)
            for id, stage in self._theatre.stages.items()
            for model, replicas in stage.dataplane.routes.items()
            for holder in self._holders(stage, [replica.id for replica in replicas])
            if self._hears(stage, id, holder) and not self._holds(holder, model)
        }
        self._wrong = {route: self._wrong.get(route, now_s) for route in wrong}
        patience_s = WRONG_MAX_S + 200.0 * self._theatre.network.delay_s[1]
        for (id, model, holder), since_s in self._wrong.items():
            self._clients.expect(
                now_s - since_s <= patience_s, f"{id} routes {model} to {holder}, where it is not loaded"
            )

    @staticmethod
    def _holders(stage: Stage, replicas: list[int]) -> list[str]:
        found = [stage.mesh.holder_abroad(replica) for replica in replicas]
        return [held[1] for held in found if held is not None]

    def _hears(self, stage: Stage, id: str, holder: str) -> bool:
        """Whether it can hear that life of the holder that it knows; who is cut off from the store does not learn of another."""
        there, fleet = self._theatre.stages.get(holder), stage.mesh.fleet
        known = None if fleet is None else fleet.get(holder)
        if (
            there is None
            or there.peers is None
            or known is None
            or known.member.epoch != there.peers.me.epoch
        ):
            return False
        return self._theatre.network.reaches(id, holder)

    def _holds(self, id: str, model: str) -> bool:
        stage = self._theatre.stages.get(id)
        copy = None if stage is None else stage.mesh.copy(model)
        return copy is not None and copy.state is State.LOADED
