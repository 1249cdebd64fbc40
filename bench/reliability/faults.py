"""What befalls the mesh. Each fault is a function that strikes, lasts, mends, and tells the scene when it did so."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.models import ZooModel
from bench.reliability.cluster import Cluster, Member

MIB = 2**20
LOOKED_FOR_S = 2.0
"""A model whose files are back serves after so long."""


@dataclass
class Scene:
    """Where a fault plays. Afterwards it tells when it struck and was mended, and whom that excuses: `apart` are the addresses
    whose own clients lose their connection, `cold` the models that could not be had while it lasted."""

    cluster: Cluster
    models: Sequence[ZooModel]
    folder: Path
    lasts_s: float
    struck_s: float = 0.0
    mended_s: float = 0.0
    apart: set[str] = field(default_factory=set)
    cold: set[str] = field(default_factory=set)

    @functools.cached_property
    def victim(self) -> Member:
        """The instance that holds the most."""
        loaded = self.cluster.totals("models_loaded")
        return max(self.cluster.running, key=lambda member: loaded.get(str(member), 0))

    @property
    def others(self) -> list[Member]:
        return [member for member in self.cluster.running if member is not self.victim]

    def excuses_entry(self, entry: str, at_s: float) -> bool:
        """Whether nobody could answer what was sent there then. What was sent a moment before may be on its way yet."""
        return entry in self.apart and self.struck_s - 1 <= at_s < self.mended_s

    def excuses_model(self, model: str, at_s: float) -> bool:
        """Whether it could not be had then, or was not looked for again yet (docs/mesh.md, "When storage was away")."""
        return model in self.cold and at_s < self.mended_s + LOOKED_FOR_S

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """From the strike, made in the block, to its end: then it is to be mended."""
        self.struck_s = time.monotonic()
        yield
        time.sleep(max(0.0, self.struck_s + self.lasts_s - time.monotonic()))
        self.mended_s = time.monotonic()


def instance_killed(scene: Scene) -> None:
    victim = scene.victim
    scene.apart.add(victim.address)
    with scene.lasting():
        victim.signal(signal.SIGKILL)
        victim.wait_ended()
    victim.start("1")
    victim.wait_ready()


def worker_killed(scene: Scene) -> None:
    workers = scene.victim.workers()
    with scene.lasting():
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def instance_stopped(scene: Scene) -> None:
    victim = scene.victim
    scene.apart.add(victim.address)
    with scene.lasting():
        victim.signal(signal.SIGSTOP)
    victim.signal(signal.SIGCONT)


def _parted(scene: Scene, *, peers: bool, etcd: bool) -> None:
    network = scene.cluster.network
    victim, others = [scene.victim.machine], [member.machine for member in scene.others]
    with scene.lasting():
        network.cut(victim, [*(others if peers else ()), *(scene.cluster.etcd_machines if etcd else ())])
    network.heal()


def parted_from_peers(scene: Scene) -> None:
    _parted(scene, peers=True, etcd=False)


def parted_from_etcd(scene: Scene) -> None:
    _parted(scene, peers=False, etcd=True)


def parted_from_all(scene: Scene) -> None:
    _parted(scene, peers=True, etcd=True)


def etcd_killed(scene: Scene) -> None:
    etcd = scene.cluster.etcd
    with scene.lasting():
        for server in etcd.servers:
            server.signal(signal.SIGKILL)
    for server in etcd.servers:
        etcd.start(server)
    for server in etcd.servers:
        server.wait_listening()


def etcd_leader_killed(scene: Scene) -> None:
    etcd, leader = scene.cluster.etcd, scene.cluster.etcd.leader()
    with scene.lasting():
        leader.signal(signal.SIGKILL)
    etcd.start(leader)
    leader.wait_listening()


def etcd_compacted(scene: Scene) -> None:
    """While one instance cannot follow: what it has not seen is not to be had by watching any more."""
    cluster, network = scene.cluster, scene.cluster.network
    victim = scene.victim.machine
    with scene.lasting():
        network.cut([victim], cluster.etcd_machines)
        for number in range(20):  # keys of no mesh
            revision = _revision(cluster.etcd.ctl("put", "elsewhere", str(number), "--write-out=json"))
    cluster.etcd.ctl("compact", str(revision))
    network.heal()


def _revision(answer: str) -> int:
    return int(json.loads(answer)["header"]["revision"])


def etcd_slow(scene: Scene) -> None:
    """It runs for one fifth of the time, half a second at once."""
    servers = scene.cluster.etcd.servers
    with scene.lasting():
        while time.monotonic() < scene.struck_s + scene.lasts_s:
            for number, pause_s in ((signal.SIGSTOP, 0.4), (signal.SIGCONT, 0.1)):
                for server in servers:
                    server.signal(number)
                time.sleep(pause_s)


def etcd_full(scene: Scene) -> None:
    etcd = scene.cluster.etcd
    filler = scene.folder / "filler"
    filler.write_bytes(b"x" * MIB)
    with scene.lasting():
        for number in itertools.count():
            try:
                with filler.open("rb") as value:
                    etcd.ctl("put", f"filler/{number}", stdin=value)
            except AssertionError as full:
                if "space exceeded" not in str(full):
                    raise
                break
    revision = _revision(etcd.ctl("del", "filler/", "--prefix", "--write-out=json"))
    etcd.ctl("compact", "--physical", str(revision))
    etcd.ctl("defrag")
    etcd.ctl("alarm", "disarm")


def storage_lost(scene: Scene) -> None:
    """The folder of the models is gone for a while, and a fifth of the models is not loaded anywhere."""
    scene.cold.update(model.name for model in scene.models[::5])
    models = scene.cluster.models
    away = models.with_name("away")
    with scene.lasting():
        models.rename(away)
        scene.cluster.unload(scene.cold)
    away.rename(models)


def all_replaced(scene: Scene) -> None:
    """One more is started, then the oldest is told to end; until all are new. It lasts as long as it takes."""
    cluster = scene.cluster
    scene.struck_s = time.monotonic()
    for old in list(cluster.running):
        new = cluster.add()
        new.start("2")
        new.wait_ready()
        old.signal(signal.SIGTERM)
        old.wait_ended()
        cluster.members.remove(old)
    scene.mended_s = time.monotonic()


def scaled_in(scene: Scene) -> None:
    victim = scene.victim
    with scene.lasting():
        victim.signal(signal.SIGTERM)
        victim.wait_ended()


@dataclass(frozen=True, slots=True)
class Fault:
    """`failures_max` is the greatest share of requests that may fail, without those that the scene excuses."""

    name: str
    says: str
    play: Callable[[Scene], None]
    lasts_s: float = 8.0
    failures_max: float = 0.0


BOUNDED = 0.01
FAULTS = (
    Fault("instance-killed", "`kill -9` of an instance", instance_killed),
    Fault("worker-killed", "`kill -9` of an instance's worker", worker_killed),
    Fault("instance-stopped", "SIGSTOP of an instance, then SIGCONT", instance_stopped, failures_max=BOUNDED),
    Fault("parted-from-peers", "an instance parted from its peers", parted_from_peers, failures_max=BOUNDED),
    Fault("parted-from-etcd", "an instance parted from etcd", parted_from_etcd, lasts_s=15),
    Fault(
        "parted-from-all",
        "an instance parted from its peers and etcd",
        parted_from_all,
        lasts_s=15,
        failures_max=BOUNDED,
    ),
    Fault("etcd-killed", "`kill -9` of all of etcd, started again", etcd_killed, lasts_s=15),
    Fault("etcd-leader-killed", "`kill -9` of etcd's leader, started again", etcd_leader_killed),
    Fault("etcd-compacted", "etcd compacted while an instance cannot follow", etcd_compacted),
    Fault("etcd-slow", "etcd stands still for four fifths of the time", etcd_slow),
    Fault("etcd-full", "etcd full (quota exceeded), then emptied", etcd_full),
    Fault("storage-lost", "the models' files gone, and back", storage_lost, lasts_s=30),
    Fault("all-replaced", "all instances replaced, one by one", all_replaced),
    Fault("scaled-in", "an instance fewer (SIGTERM)", scaled_in),
)
