"""Routes as the data plane has them: a projection of the copies here and of those of other instances.

Nothing is kept in step by hand: a change marks the model, `publish` projects all that are marked. A model that is only loaded
elsewhere gets a route when a request asks for it, and from then on it follows what is known of its copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Final, Protocol

from modelmesh.dataplane.protocol import DataPlane, Replica, Route, Target
from modelmesh.mesh.fleet import Fleet, Peer
from modelmesh.mesh.views import State
from modelmesh.runtime.protocol import TargetsChanged

PUBLISH_BATCH = 1024
"""Routes per call: the data plane holds its locks for the whole of one."""
PEER_IDS_FROM: Final = 1 << 32
"""Targets and replicas of this instance's runtimes are numbered from 1; those of others from here."""


class Local(Protocol):
    """What a route needs of a copy here."""

    @property
    def state(self) -> State: ...
    @property
    def replicas(self) -> tuple[Replica, ...]: ...
    @property
    def retirement(self) -> object | None: ...


class Abroad:
    """Copies of other instances as replicas of the data plane: a target per instance, a replica per copy that is routed.

    A copy that was denied and is believed again is another replica: late answers about the former one say nothing of it.
    """

    def __init__(self, fleet: Fleet, dataplane: DataPlane) -> None:
        self._fleet = fleet
        self._dataplane = dataplane
        self._ids = count(PEER_IDS_FROM)
        self._targets: dict[str, Target] = {}
        """Instance -> its target."""
        self._instances: dict[int, str] = {}
        """Target -> its instance."""
        self._replicas: dict[str, dict[str, Replica]] = {}
        """Model -> instance -> the replica."""
        self._owners: dict[int, tuple[str, str]] = {}
        """Replica -> model and instance."""

    def follow(self) -> None:
        """Have a target for every instance there is, and none for others."""
        gone = [id for id, target in self._targets.items() if self._address(id) != target.address]
        remove = [self._targets.pop(id).id for id in gone]
        for id, target_id in zip(gone, remove, strict=True):
            del self._instances[target_id]
            for replicas in self._replicas.values():
                if (replica := replicas.pop(id, None)) is not None:
                    del self._owners[replica.id]
        add = []
        for peer in self._fleet:
            if peer.id not in self._targets:
                target = Target(next(self._ids), peer.member.address, peer=True)
                self._targets[peer.id], self._instances[target.id] = target, peer.id
                add.append(target)
        if add or remove:
            self._dataplane.set_targets(add, remove)

    def _address(self, id: str) -> str:
        peer = self._fleet.get(id)
        return "" if peer is None else peer.member.address

    def replicas(self, model: str) -> tuple[Replica, ...]:
        """Of the copies that may be asked now."""
        usable = {peer.id for peer in self._fleet.holders(model) if peer.id in self._targets}
        known = self._replicas.get(model, {})
        for id in [id for id in known if not self._holds(id, model)]:
            del self._owners[known.pop(id).id]
        for id in sorted(usable - known.keys()):
            replica = known[id] = Replica(next(self._ids), self._targets[id].id)
            self._owners[replica.id] = model, id
        if known:
            self._replicas[model] = known
        else:
            self._replicas.pop(model, None)
        return tuple(known[id] for id in sorted(usable))

    def _holds(self, id: str, model: str) -> bool:
        peer = self._fleet.get(id)
        return peer is not None and peer.holds(model)

    def holder(self, replica_id: int) -> tuple[str, str] | None:
        """The model and the instance of a replica; None when it is not (any more) one of another instance."""
        return self._owners.get(replica_id)

    def instance(self, target_id: int) -> str | None:
        """The instance of a target; None when it is a server of this one."""
        return self._instances.get(target_id)

    def reachable(self, model: str) -> bool:
        """Whether a copy elsewhere can be asked now."""
        return any(not peer.lost for peer in self._fleet.holders(model))

    def holders(self, model: str) -> list[Peer]:
        return self._fleet.holders(model)


class Routes:
    """`local` answers for the copies of this instance; `abroad` is None where there are no others."""

    def __init__(
        self, dataplane: DataPlane, local: Callable[[str], Local | None], abroad: Abroad | None = None
    ) -> None:
        self._dataplane = dataplane
        self._local = local
        self._abroad = abroad
        self._dirty: dict[str, None] = {}
        self._targets: set[int] = set()
        self._removed_targets: set[int] = set()
        self._without_target: dict[str, None] = {}
        self._routed: set[str] = set()
        self._awaited: set[str] = set()
        """Models requests wait for, which are being provided elsewhere."""
        self._followed: set[str] = set()

    def change_targets(self, change: TargetsChanged) -> None:
        """Tell the data plane first; routes that waited for one of the new targets follow."""
        self._targets.difference_update(change.remove)
        self._removed_targets.update(change.remove)
        self._targets.update(target.id for target in change.add)
        self._dataplane.set_targets(change.add, change.remove)
        self._dirty.update(self._without_target)
        self._without_target.clear()

    def deserted(self, replicas: Iterable[Replica]) -> bool:
        """Whether all servers that held these are gone for good."""
        return all(replica.target_id in self._removed_targets for replica in replicas)

    @property
    def n_targets(self) -> int:
        """Model servers of this instance."""
        return len(self._targets)

    def here(self, model: str) -> tuple[Replica, ...]:
        """The replicas of this instance that requests may go to."""
        copy = self._local(model)
        if copy is None or copy.state is not State.LOADED or copy.retirement is not None:
            return ()
        return tuple(replica for replica in copy.replicas if replica.target_id in self._targets)

    def mark(self, model: str) -> None:
        """Project its route at the next `publish`."""
        self._dirty[model] = None

    def drop(self, model: str) -> None:
        """Its copy here is gone."""
        self._without_target.pop(model, None)
        self.mark(model)

    def await_copy(self, model: str) -> None:
        """Requests wait for it: a copy that appears anywhere gets a route."""
        self._awaited.add(model)

    def await_no_more(self, model: str) -> None:
        self._awaited.discard(model)

    def follow(self, model: str, wanted: bool) -> None:
        """Have a route wherever it has a copy, though no request waits for it; or, no longer `wanted`, as for any other."""
        if wanted:
            self._followed.add(model)
            self.mark(model)
        else:
            self._followed.discard(model)

    def changed_abroad(self, models: Iterable[str]) -> None:
        """Other instances hold these, or do so no more."""
        for model in models:
            wanted = model in self._routed or model in self._awaited or model in self._followed
            if wanted or self._local(model) is not None:
                self.mark(model)

    def publish(self) -> None:
        """Tell the data plane the routes that changed. A copy that retires is not named: that would revive it."""
        if not self._dirty:
            return
        routes: list[Route] = []
        for model in self._dirty:
            copy = self._local(model)
            here = self.here(model)
            away = () if self._abroad is None else self._abroad.replicas(model)
            if copy is not None and copy.retirement is not None and not away:
                continue
            if copy is not None and len(here) < len(copy.replicas):
                self._without_target[model] = None
            if here or away:
                routes.append(Route(model, (*here, *away)))
                self._routed.add(model)
                self._awaited.discard(model)
            elif model in self._routed:
                routes.append(Route(model, ()))
                self._routed.remove(model)
        self._dirty.clear()
        for start in range(0, len(routes), PUBLISH_BATCH):
            self._dataplane.publish(routes[start : start + PUBLISH_BATCH])
