"""What goes wrong among several instances: they crash, hang, leave, are replaced; the network, the store, the storage fail."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations, product
from typing import Final

from modelmesh.errors import Code, LoadFailed, StoreUnavailable
from modelmesh.testing.clients import Clients
from modelmesh.testing.storage import find_storage, lose_storage, mend_storage, turn_storage
from modelmesh.testing.theatre import Theatre

STORE_AWAY: Final = "The store is away."
DISK_FULL: Final = "Its disk is full."
GRACE_S: Final = (0.5, 10.0)
LATE_S: Final = (0.5, 3.0)
Scene = Callable[[], None]


class Trouble:
    """`scenes` with their weights; each plays at once or begins a call. `end` ends all that lasts. `seen` counts what
    happened."""

    def __init__(self, theatre: Theatre, clients: Clients, rng: random.Random, seen: Counter[str]) -> None:
        self._theatre = theatre
        self._clients = clients
        self._rng = rng
        self._seen = seen
        self._down: set[str] = set()
        self._revision = 0
        self._upgrading = False
        self.over = False

    def scenes(self) -> tuple[tuple[int, Scene], ...]:
        return (
            (6, self._crash), (3, self._leave), (6, self._return), (1, self._upgrade), (4, self._freeze),
            (3, self._hold_up), (4, self._cut), (2, self._split), (2, self._isolate), (2, self._cut_store), (6, self._mend),
            (2, self._outage), (2, self._storm), (4, self._break), (2, self._sicken), (4, self._forget),
            (3, self._lose_server), (1, self._lose_storage),
        )  # fmt: skip

    def awake(self) -> list[str]:
        """The instances that clients may be answered by."""
        return sorted(self._theatre.stages.keys() - self._theatre.network.frozen)

    def end(self) -> None:
        """From now on nothing is wrong any more; instances that are down stay so."""
        self.over = True
        mend_storage(self._theatre.artefacts)
        self._theatre.store.outage = ""
        self._theatre.network.spikes = 0.0
        for id, stage in self._theatre.stages.items():
            stage.runtime.load_error = None
            self._theatre.lines[id].calm()
        self._theatre.mend()

    async def bring_back(self) -> None:
        """Start the instances that are down."""
        for id in sorted(self._down - self._theatre.stages.keys()):
            await self._begin(id)

    # --- instances ------------------------------------------------------------------------------------------

    def _some(self, at_least: int = 2) -> str | None:
        """Any instance that is awake, if so many others are."""
        ids = [id for id in self.awake() if id not in self._down]
        return self._rng.choice(ids) if len(ids) > at_least else None

    def _crash(self) -> None:
        if (id := self._some()) is not None:
            self._down.add(id)
            self._seen["crashes"] += 1
            self._clients.begin(self._theatre.crash(id))

    def _leave(self) -> None:
        """An instance is stopped in good order."""
        if (id := self._some()) is not None:
            self._down.add(id)
            self._seen["stops"] += 1
            self._clients.begin(self._stop(id))

    async def _stop(self, id: str) -> None:
        stage = self._theatre.stages.pop(id, None)
        if stage is not None:
            await stage.stop(self._rng.choice(GRACE_S))

    def _return(self) -> None:
        down = sorted(self._down - self._theatre.stages.keys())
        if down:
            id = self._rng.choice(down)
            self._down.discard(id)
            self._clients.begin(self._begin(id))

    async def _begin(self, id: str) -> None:
        self._down.discard(id)
        try:
            await self._theatre.begin(id, revision=f"r{self._revision}")
        except StoreUnavailable:
            self._down.add(id)

    def _upgrade(self) -> None:
        """All instances are replaced by those of a newer revision, one after the other: the new one first."""
        if not self._upgrading:
            self._upgrading = True
            self._seen["upgrades"] += 1
            self._clients.begin(self._replace_all(sorted(self._theatre.stages)))

    async def _replace_all(self, ids: list[str]) -> None:
        self._revision += 1
        for id in ids:
            if self.over or id not in self._theatre.stages or id in self._down:
                continue
            new = f"{id[0]}{self._revision}"
            try:
                await self._theatre.begin(new, revision=f"r{self._revision}")
            except StoreUnavailable:
                break
            if len(self.awake()) > 1:
                await self._stop(id)
        self._upgrading = False

    def _freeze(self) -> None:
        if not self._theatre.network.frozen and (id := self._some()) is not None:
            self._seen["freezes"] += 1
            self._theatre.freeze(id)

    def _hold_up(self) -> None:
        """An event loop is late, as on a busy machine."""
        if (id := self._some(0)) is not None:
            self._seen["late loops"] += 1
            self._theatre.network.hold_up(id, self._rng.choice(LATE_S))

    # --- the network and the store --------------------------------------------------------------------------

    def _cut(self) -> None:
        """Two instances do not reach each other."""
        ids = sorted(self._theatre.stages)
        if len(ids) > 1:
            self._seen["partitions"] += 1
            self._theatre.network.cut(*self._rng.sample(ids, 2))

    def _split(self) -> None:
        """The mesh falls into two parts; both see the store."""
        ids = sorted(self._theatre.stages)
        self._rng.shuffle(ids)
        middle = self._rng.randint(1, max(len(ids) - 1, 1))
        self._seen["splits"] += 1
        for one, other in product(ids[:middle], ids[middle:]):
            self._theatre.network.cut(one, other)

    def _isolate(self) -> None:
        """An instance reaches nobody, and perhaps not even the store."""
        id = self._rng.choice(sorted(self._theatre.stages))
        self._seen["isolations"] += 1
        for one, other in combinations(sorted(self._theatre.stages), 2):
            if id in (one, other):
                self._theatre.network.cut(one, other)
        if self._rng.random() < 0.5:
            self._theatre.cut_store(id)

    def _cut_store(self) -> None:
        """An instance does not reach the store."""
        self._seen["store cuts"] += 1
        self._theatre.cut_store(self._rng.choice(sorted(self._theatre.stages)))

    def _mend(self) -> None:
        self._theatre.mend()

    def _outage(self) -> None:
        """The store is away for everybody."""
        self._seen["outages"] += 1
        self._theatre.store.outage = STORE_AWAY
        asyncio.get_running_loop().call_later(self._rng.choice((0.05, 1.0)), self._end_outage)

    def _end_outage(self) -> None:
        self._theatre.store.outage = ""

    def _storm(self) -> None:
        """What is said takes long at times; what the store tells is late, and answers of it are lost."""
        self._seen["storms"] += 1
        self._theatre.network.spikes = self._rng.choice((0.0, 0.1))
        for line in self._theatre.lines.values():
            line.late_s = self._rng.choice(((0.0, 0.0), (0.0, 0.5)))
            line.slow_s = self._rng.choice(((0.0, 0.0), (0.0, 0.3)))
            line.lost_share = self._rng.choice((0.0, 0.2))

    # --- models and their servers ---------------------------------------------------------------------------

    def _break(self) -> None:
        turn_storage(self._theatre.artefacts, self._rng)

    def _lose_storage(self) -> None:
        """The storage of all models is gone for a while."""
        self._seen["storage lost"] += 1
        lose_storage(self._theatre.artefacts)
        asyncio.get_running_loop().call_later(
            self._rng.choice((0.5, 5.0)), find_storage, self._theatre.artefacts
        )

    def _sicken(self) -> None:
        """One instance can load nothing, or can again."""
        id = self._some(0)
        if id is not None:
            self._seen["sick"] += 1
            runtime = self._theatre[id].runtime
            sick = LoadFailed(DISK_FULL, code=Code.UNAVAILABLE)
            runtime.load_error = sick if runtime.load_error is None else None

    def _forget(self) -> None:
        """A model server loses a model and says nothing."""
        id = self._some(0)
        runtime = None if id is None else self._theatre[id].runtime
        if runtime is not None and runtime.loaded:
            runtime.forget(self._rng.choice(sorted(runtime.loaded)))

    def _lose_server(self) -> None:
        """A model server dies."""
        id = self._some(0)
        if id is not None:
            stage = self._theatre[id]
            target = self._rng.choice(stage.runtime.targets)
            stage.dataplane.lose_target(target)
            stage.runtime.crash_target(target)
