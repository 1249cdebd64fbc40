"""A real etcd for tests: one process or a cluster of them, on free ports of this machine, in a folder of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

START_S = 20.0
STOP_S = 10.0


def _program(name: str) -> str | None:
    """Where it is: on the path, or beside the interpreter, where `make test` puts it."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def missing() -> str:
    """Why there can be no etcd here; empty when there can."""
    absent = [program for program in ("etcd", "etcdctl") if _program(program) is None]
    return f"{' and '.join(absent)} is not installed (Debian: etcd-server, etcd-client)." if absent else ""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Certificates of the servers; clients must show one of `trust`."""

    trust: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member runs: the address it listens on, and what goes before its command, `ip netns exec NAME` for example."""

    host: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


HERE: Final = Place()


class EtcdServer:
    """One member. Its ports and data outlive `kill` and `stop`, so that `start` goes on where it was."""

    def __init__(
        self, name: str, folder: Path, tls: ServerTls | None, *arguments: str, place: Place = HERE
    ) -> None:
        self.name = name
        self.place = place
        self.port, self.peer_port = _free_ports(2)
        self._scheme = "http" if tls is None else "https"
        self._folder = folder / name
        self._arguments = arguments
        if tls is not None:
            self._arguments += ("--client-cert-auth", "--trusted-ca-file", str(tls.trust))
            self._arguments += ("--cert-file", str(tls.certificate), "--key-file", str(tls.key))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://{self.place.host}:{self.port}"

    @property
    def member(self) -> str:
        return f"{self.name}={self._peer_url}"

    @property
    def _peer_url(self) -> str:
        return f"http://{self.place.host}:{self.peer_port}"

    def start(self, members: Sequence[str]) -> None:
        """Returns at once; `wait_listening` waits."""
        self._folder.mkdir(parents=True, exist_ok=True)
        peer = self._peer_url
        with (self._folder / "log.txt").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *self.place.prefix,
                    *(_program("etcd") or "etcd", "--name", self.name),
                    *("--data-dir", str(self._folder / "data")),
                    *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", ",".join(members), "--logger", "zap", "--log-level", "error"),
                    *("--heartbeat-interval", "50", "--election-timeout", "500", *self._arguments),
                ],
                stdout=output,
                stderr=output,
            )

    @property
    def running(self) -> bool:
        return self._process is not None

    def forget(self) -> None:
        """Lose the data, so that the next start makes another cluster. It must not run."""
        shutil.rmtree(self._folder / "data")
        (self.peer_port,) = _free_ports(1)

    def wait_listening(self) -> None:
        ends_s = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection((self.place.host, self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > ends_s or (
                    self._process is not None and self._process.poll() is not None
                ):
                    raise AssertionError(
                        f"etcd did not start: {(self._folder / 'log.txt').read_text()}"
                    ) from None
                time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """SIGKILL, SIGSTOP, SIGCONT, SIGTERM; after the first and the last, returns when it is gone."""
        if self._process is None:
            return
        self._process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._process.wait(STOP_S)
            self._process = None


class Etcd:
    """A running cluster, as a context."""

    def __init__(
        self,
        folder: Path,
        members: int = 1,
        tls: ServerTls | None = None,
        arguments: Sequence[str] = (),
        places: Sequence[Place] = (),
    ) -> None:
        """`places` has one for each member; without any all of them run here."""
        self.servers = [
            EtcdServer(f"m{n}", folder, tls, *arguments, place=places[n] if places else HERE)
            for n in range(members)
        ]

    def __enter__(self) -> Etcd:
        with ExitStack() as stack:
            stack.push(self.__exit__)
            for server in self.servers:
                self.start(server)
            for server in self.servers:
                server.wait_listening()
            stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self.servers:
            server.signal(signal.SIGKILL)

    @property
    def endpoints(self) -> str:
        """With commas between them."""
        return ",".join(server.endpoint for server in self.servers)

    def start(self, server: EtcdServer) -> None:
        """Start a member, again if need be."""
        server.start([each.member for each in self.servers])

    def ctl(self, *arguments: str, endpoint: str = "", stdin: IO[bytes] | None = None) -> str:
        """What `etcdctl` prints."""
        done = subprocess.run(
            [_program("etcdctl") or "etcdctl", "--endpoints", endpoint or self.endpoints, *arguments],
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        if done.returncode:
            raise AssertionError(f"etcdctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def leader(self) -> EtcdServer:
        """The member that leads now."""
        ends_s = time.monotonic() + START_S
        while time.monotonic() < ends_s:
            for server in self.servers:
                # endpoint, id, version, size, is leader, ...
                columns = self.ctl("endpoint", "status", endpoint=server.endpoint).split(", ")
                if columns[4] == "true":
                    return server
            time.sleep(0.05)
        raise AssertionError("No member leads.")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
