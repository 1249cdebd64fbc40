"""This instance among others, as its settings say: who it is, where it is reached, by what certificates it knows the others.

Instances that share a store form one mesh. A store that is this machine's alone has one instance, and no peers.
"""

from __future__ import annotations

import logging
import re
import socket
import uuid
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from modelmesh import __version__
from modelmesh.dataplane.protocol import DataPlane, PeerTls
from modelmesh.errors import SettingsError
from modelmesh.instance.watched_files import WatchedFiles
from modelmesh.journal import Journal
from modelmesh.peers.connected import ConnectedPeers
from modelmesh.peers.dialling import Connection, MutualTls, dial, split
from modelmesh.peers.protocol import Member
from modelmesh.policy.runtimes import Offer
from modelmesh.settings.files import read_bytes
from modelmesh.settings.tree import Peering, Settings
from modelmesh.store.protocol import Store

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

_log = logging.getLogger("modelmesh")


class Neighbours:
    """The other instances of the mesh: found by the store, reached at an address that is known once the peer port is open."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        endpoints: Sequence[str],
        me: Member,
        socket_dir: Path,
    ) -> None:
        """`endpoints`: of the store, as host:port. `socket_dir`: for this process alone. Raises SettingsError."""
        self._settings = settings
        self._endpoints = [split(endpoint) for endpoint in endpoints]
        self._certificates = _certificates(settings.peering, socket_dir)
        self.peers = ConnectedPeers(
            store, me, dial if self._certificates is None else self._certificates.dial
        )

    @property
    def tls(self) -> PeerTls | None:
        """What the data plane begins with; None: plain text."""
        return None if self._certificates is None else self._certificates.tls

    def watched(self, dataplane: DataPlane, journal: Journal) -> list[WatchedFiles]:
        """Files whose changes take effect while they are run by the caller."""
        return [] if self._certificates is None else [self._certificates.watched(dataplane, journal)]

    def check_folder(self) -> None:
        """Raises SettingsError when an instance that was there before serves another folder: each would unregister what the other
        serves."""
        me = self.peers.me
        for other in self.peers.others:
            first = (other.epoch, other.id) < (me.epoch, me.id)
            if me.folder and other.folder not in ("", me.folder) and first:
                raise SettingsError(
                    f"FOLDER: {me.folder} is not the folder that the service {self._settings.state.service} serves: instance "
                    f"{other.id} has {other.folder}. Serve the same, at the same path, or give this service another name."
                )

    def open_at(self, bound: str) -> None:
        """The peer port is open there: from now on others may know. Raises SettingsError when it is not clear where they reach
        it."""
        host, port = split(bound)
        if self._settings.peering.advertise is not None:
            host, other_port = self._settings.peering.advertise
            port = other_port or port
        elif ip_address(host).is_unspecified:
            host = _address_towards(self._endpoints)
        self.peers.reachable_at(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        if _is_of_this_machine(host) and not all(_is_of_this_machine(there) for there, _ in self._endpoints):
            _log.warning(
                "Instances on other machines will look for this one at %s, which is their own: give it --host or --advertise.",
                self.peers.me.address,
            )


def member_of(settings: Settings, offers: Sequence[Offer], now_wall_s: float) -> Member:
    """This life of the instance as the others are to know it; where it is reached is not known yet."""
    peering, now_ms = settings.peering, round(now_wall_s * 1000)
    any_type = any(not offer.model_types for offer in offers)
    return Member(
        id=peering.instance_id or uuid.uuid4().hex[:12],
        epoch=now_ms,
        address="",
        zone=peering.zone or "",
        host=peering.machine or socket.gethostname(),
        labels=settings.runtimes.labels.union(*(offer.labels for offer in offers)),
        model_types=frozenset() if any_type else frozenset().union(*(offer.model_types for offer in offers)),
        version=__version__,
        revision=peering.revision or "",
        started_wall_ms=now_ms,
        folder=str(settings.models.folder or ""),
    )


def _address_towards(endpoints: Sequence[tuple[str, int]]) -> str:
    """Of the interface by which one of these is reached. Nothing is sent."""
    why: OSError | None = None
    for host, port in endpoints:
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(address)
                    return str(probe.getsockname()[0])
        except OSError as error:
            why = error
    raise SettingsError(
        f"advertise: the address by which other instances reach this one is not clear ({why}); give it by --advertise."
    )


def _is_of_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class PeerCertificates:
    """Those that instances show each other: read at once, and again when the files change."""

    def __init__(self, certificate: Path, key: Path, peering: Peering, socket_dir: Path) -> None:
        """Raises SettingsError."""
        self._certificate, self._key = certificate, key
        self._passphrase, self._trust = peering.tls_key_passphrase or "", peering.tls_trust or ()
        self._socket_dir = socket_dir
        self.tls, self._dialling = self._read()

    async def dial(self, address: str) -> Connection:
        """See `peers.dialling.Dial`."""
        return await self._dialling.dial(address)

    def watched(self, dataplane: DataPlane, journal: Journal) -> WatchedFiles:
        """For the caller to run."""

        def use() -> None:
            tls, dialling = self._read()
            dataplane.set_peer_tls(tls)
            self.tls, self._dialling = tls, dialling

        paths = [self._certificate, self._key, *self._trust]
        return WatchedFiles(paths, use, journal, f"The certificate for peers {self._certificate}")

    def _read(self) -> tuple[PeerTls, MutualTls]:
        certificate_pem = read_bytes(self._certificate, "peer_tls_cert")
        key_pem = read_bytes(self._key, "peer_tls_key")
        trusted = _CERTIFICATE.findall(certificate_pem)[:1]
        for path in self._trusted_files():
            trusted += _CERTIFICATE.findall(read_bytes(path, "peer_tls_trust"))
        trusted_pem = b"\n".join(trusted)
        dialling = MutualTls(self._certificate, self._key, trusted_pem, self._socket_dir, self._passphrase)
        return PeerTls(certificate_pem, key_pem, trusted_pem, self._passphrase), dialling

    def _trusted_files(self) -> list[Path]:
        found: list[Path] = []
        for path in self._trust:
            try:
                found += sorted(filter(Path.is_file, path.iterdir())) if path.is_dir() else [path]
            except OSError as error:
                raise SettingsError(f"peer_tls_trust: {path} cannot be read: {error.strerror}.") from error
        return found


def _certificates(peering: Peering, socket_dir: Path) -> PeerCertificates | None:
    """None: plain text. Raises SettingsError for half of what is needed, and for what cannot be used."""
    certificate, key = peering.tls_cert, peering.tls_key
    if certificate is None and key is None:
        if peering.tls_trust is not None:
            raise SettingsError(
                "peer_tls_trust is given but no certificate; give peer_tls_cert and peer_tls_key too."
            )
        return None
    if certificate is None or key is None:
        missing = "peer_tls_cert" if certificate is None else "peer_tls_key"
        raise SettingsError(f"{missing} is missing; TLS between instances needs a certificate and its key.")
    return PeerCertificates(certificate, key, peering, socket_dir)
