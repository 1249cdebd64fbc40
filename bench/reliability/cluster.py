"""The mesh under test: an etcd and instances of `modelmesh serve`, each on a machine of its own, their logs in one folder."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.models import ZooModel
from bench.procs import tree, wait_until
from bench.product import COMMAND, Product
from bench.reliability.network import Machine, Network
from bench.soak import listed
from bench.traffic import Clients
from modelmesh.testing.etcd import Etcd, Place

START_S = 60.0
STOP_S = 60.0
SERVICE = "reliability"


@dataclass(frozen=True, slots=True)
class Shape:
    """What to start. `memory` is each instance's; `name` begins the names of its machines."""

    n_instances: int = 4
    n_etcd: int = 3
    etcd_bytes: int = 16 << 20
    memory: str = "256MiB"
    workers: int = 1
    grace_s: float = 30.0
    flags: tuple[str, ...] = ()
    name: str = ""


class Member:
    """One instance on one machine. `start` again after it ended: a new process, with nothing of the old one."""

    def __init__(self, machine: Machine, folder: Path, arguments: Sequence[str]) -> None:
        self.machine = machine
        self._folder = folder
        self._arguments = arguments
        self._started = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._product: Product | None = None

    def __str__(self) -> str:
        return self.machine.name

    def start(self, revision: str) -> None:
        """Returns at once; `wait_ready` waits."""
        self._started += 1
        self._product = None
        scratch = self._folder / f"{self.machine.name}-{self._started}"
        scratch.mkdir(parents=True)
        self.log, self._ready = scratch / "log.txt", scratch / "ready.json"
        command = [*self.machine.prefix, str(COMMAND), "serve", *self._arguments]
        command += ["--host", self.machine.host, "--ready-file", str(self._ready)]
        command += ["--state", str(scratch / "state"), "--journal-file", str(scratch / "journal.jsonl")]
        command += ["--instance-id", f"{self.machine.name}-{self._started}"]
        command += ["--machine", self.machine.name, "--revision", revision]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "XDG_RUNTIME_DIR": str(scratch)},
            )

    def wait_ready(self) -> None:
        """RuntimeError with the end of its log when it does not become ready."""
        assert self._process is not None
        wait_until(self._ready.exists, str(self), process=self._process, log=self.log, timeout_s=START_S)
        facts = json.loads(self._ready.read_text())
        self._product = Product(facts["pid"], facts["grpc"], facts["rest"], facts["ops"], 0.0, self.log)

    @property
    def product(self) -> Product:
        """What it is since it was ready, also after it ended."""
        assert self._product is not None
        return self._product

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def started(self) -> bool:
        """Whether it was ready once."""
        return self._product is not None

    @property
    def address(self) -> str:
        """Of its gRPC port."""
        return self.product.grpc

    def signal(self, number: signal.Signals) -> None:
        """To the instance, not to its workers. Returns at once."""
        assert self._process is not None
        self._process.send_signal(number)

    def end(self) -> None:
        """SIGTERM, and wait until it has ended."""
        self.signal(signal.SIGTERM)
        self.wait_ended()

    def wait_ended(self) -> int:
        assert self._process is not None
        return self._process.wait(STOP_S)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        return tree(self.pid)[1:]

    def ledger(self, field: str) -> int:
        """Bytes of `GET /instance`."""
        return int(self.product.get("/instance")["ledger"][field])

    def is_ready(self) -> bool:
        """As a load balancer finds out: /ready answers 200 within a second."""
        if not self.started or not self.running:
            return False
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.product.ops}/ready", timeout=1).status_code == 200
        return False


class Cluster:
    """A context: everything runs when it is entered, and nothing when it is left."""

    def __init__(self, shape: Shape, network: Network, models: Path, folder: Path) -> None:
        self.shape = shape
        self.network = network
        self.folder = folder
        self.models = models
        self.etcd_machines = [network.machine(f"{shape.name}etcd{number}") for number in range(shape.n_etcd)]
        places = [Place(machine.host, machine.prefix) for machine in self.etcd_machines]
        self.etcd = Etcd(
            folder / "etcd",
            shape.n_etcd,
            arguments=("--quota-backend-bytes", str(shape.etcd_bytes)),
            places=places,
        )
        self.members: list[Member] = []
        self._names = (f"{shape.name}i{number}" for number in itertools.count())

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            stack.push(self.__exit__)
            self.etcd.__enter__()
            self.etcd.leader()
            for _ in range(self.shape.n_instances):
                self.add().start("1")
            for member in self.members:
                member.wait_ready()
            stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        for member in self.members:
            if member.running:
                member.signal(signal.SIGCONT)
                member.signal(signal.SIGKILL)
        for member in self.members:
            if member.running:
                member.wait_ended()
        self.etcd.__exit__(*error)

    def add(self) -> Member:
        """One more instance, on a new machine, not started."""
        shape, machine = self.shape, self.network.machine(next(self._names))
        arguments = ["--store", f"etcd:{self.etcd.endpoints}", "--service", SERVICE]
        arguments += ["--model-root", str(self.models), "--memory", shape.memory]
        arguments += ["--workers", str(shape.workers), "--grace", f"{shape.grace_s:g}", *shape.flags]
        member = Member(machine, self.folder, arguments)
        self.members.append(member)
        return member

    @property
    def running(self) -> list[Member]:
        """Those that run and have been ready."""
        return [member for member in self.members if member.running and member.started]

    def ready(self) -> list[str]:
        """Addresses of the gRPC ports of those that are ready."""
        members = list(self.members)
        with ThreadPoolExecutor(8) as threads:
            ready = list(threads.map(Member.is_ready, members))
        return [member.address for member, holds in zip(members, ready, strict=True) if holds]

    def totals(self, field: str) -> dict[str, int]:
        """A number of `GET /instance`, by machine; without those that do not answer."""
        found = {}
        for member in self.running:
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.get(f"{member.product.ops}/instance", timeout=2).raise_for_status()
                found[str(member)] = int(answer.json()[field])
        return found

    def unload(self, ids: Collection[str]) -> None:
        """Wherever they are loaded."""
        for member in self.running:
            for model in listed(member.product, state="loaded"):
                if model["id"] in ids:
                    member.product.post(f"/models/{model['id']}:unload")

    def warm(self, models: Sequence[ZooModel]) -> None:
        """Ask for each once, through one instance or another. RuntimeError when one does not answer as it should."""
        addresses = self.ready()
        for number, address in enumerate(addresses):
            share = models[number :: len(addresses)]
            tally = asyncio.run(Clients(address, share, n_clients=8, seed=1).sweep())
            if told := [*tally.errors, *tally.wrong]:
                raise RuntimeError(
                    f"{len(told)} models did not answer before anything had happened: {told[0]}"
                )

    def restore(self) -> None:
        """As many as there shall be run, are ready, and reach each other and the store."""
        self.network.heal()
        for server in self.etcd.servers:
            if not server.running:
                self.etcd.start(server)
        for server in self.etcd.servers:
            server.wait_listening()
        while len(self.members) < self.shape.n_instances:
            self.add()
        starting = [member for member in self.members if not member.running]
        for member in starting:
            member.start("1")
        for member in starting:
            member.wait_ready()
