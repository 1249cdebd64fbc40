"""Connections to other instances: in plain text, or where both sides know each other by certificates.

Instances are dialled where their records say, mostly by addresses nobody issues certificates for. So a certificate is held to
the address only if it names any of that kind, as the data plane does (docs/mesh.md). gRPC knows no such rule: TLS is spoken
for it here, behind a socket that it connects to.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from modelmesh.errors import RuntimeUnavailable, SettingsError

if TYPE_CHECKING:
    import grpc.aio

HANDSHAKE_S: Final = 5.0
CHUNK_BYTES: Final = 1 << 16
_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", -1),
)


class Connection:
    """A channel, and what is behind it, which knows more of a failure than the channel tells."""

    def __init__(self, address: str, target: str = "", behind: Relayed | None = None) -> None:
        """To an address; through `target`, if that is not the same."""
        import grpc.aio

        options = (*_OPTIONS, ("grpc.default_authority", address))
        self.channel: grpc.aio.Channel = grpc.aio.insecure_channel(target or address, options=options)
        self._behind = behind

    @property
    def refusal(self) -> str:
        """Why the other side ended it, where it said so; else empty."""
        return "" if self._behind is None else self._behind.refusal

    async def close(self) -> None:
        """Cancel all calls. Idempotent."""
        await self.channel.close()
        if self._behind is not None:
            await self._behind.close()


Dial = Callable[[str], Awaitable[Connection]]
"""Connects to an address. Raises RuntimeUnavailable with a sentence, unless it is found out by the first call."""


async def dial(address: str) -> Connection:
    """Without certificates."""
    return Connection(address)


class MutualTls:
    """With certificates: files in PEM, as they are when this is made."""

    def __init__(
        self, certificate: Path, key: Path, trusted_pem: bytes, socket_dir: Path, passphrase: str = ""
    ) -> None:
        """`trusted_pem`: authorities, and certificates that are trusted themselves. `socket_dir`: for this process alone. Raises
        SettingsError."""

        def password() -> str:
            if not passphrase:
                raise SettingsError(f"The key for peers {key} is encrypted; give peer_tls_key_passphrase.")
            return passphrase

        self._socket_dir = socket_dir
        self._context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols(["h2"])
        try:
            context.load_cert_chain(certificate, key, password=password)
            context.load_verify_locations(cadata=trusted_pem.decode("ascii"))
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise SettingsError(
                f"The certificate for peers {certificate} cannot be used: {error}."
            ) from error

    async def dial(self, address: str) -> Connection:
        """See `Dial`."""
        host, port = split(address)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                reader, writer = await asyncio.open_connection(host, port, ssl=self._context)
        except ssl.SSLError as error:
            raise RuntimeUnavailable(tls_refused(address, error)) from error
        except (OSError, TimeoutError) as error:
            why = error or f"no handshake within {HANDSHAKE_S:g} s"
            raise RuntimeUnavailable(f"The instance at {address} cannot be reached: {why}.") from error
        names = (writer.get_extra_info("peercert") or {}).get("subjectAltName", ())
        if not is_for(host, names):
            writer.transport.abort()
            said = ", ".join(name for _, name in names)
            raise RuntimeUnavailable(
                f"The certificate shown at {address} is for others: {said}. Give that instance one with this address, or without "
                "any, as peer_tls_cert."
            )
        relayed = Relayed(address, reader, writer)
        try:
            target = f"unix:{await relayed.listen(self._socket_dir)}"
        except OSError as error:
            await relayed.close()
            raise RuntimeUnavailable(f"The instance at {address} cannot be dialled: {error}.") from error
        return Connection(address, target, relayed)


class Relayed:
    """One connection, taken from a socket on this machine and passed on. When either side ends, both do."""

    _numbers = count(1)

    def __init__(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._address = address
        self._far = reader, writer
        self.refusal = ""
        """See `Connection`. Who is shown a certificate says what it thinks of it only after the handshake (RFC 8446, 4.4.2.4)."""
        self._server: asyncio.Server | None = None
        self._relaying: asyncio.Task[None] | None = None
        self._path: Path

    async def listen(self, folder: Path) -> Path:
        """Where it is taken."""
        self._path = folder / f"peer-{next(self._numbers)}.sock"
        self._server = await asyncio.start_unix_server(self._accept, self._path)
        return self._path

    async def close(self) -> None:
        """Idempotent."""
        self._stop_listening()
        if self._relaying is not None:
            self._relaying.cancel()
            await asyncio.gather(self._relaying, return_exceptions=True)
        self._far[1].transport.abort()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            writer.transport.abort()
            return
        self._stop_listening()
        self._relaying = asyncio.create_task(self._relay(reader, writer), name="relay to a peer")

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ways = [
            asyncio.create_task(_pass_on(reader, self._far[1])),
            asyncio.create_task(_pass_on(self._far[0], writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if isinstance(error := self._far[0].exception(), ssl.SSLError):
                self.refusal = tls_refused(self._address, error)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            self._far[1].transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # who waits for an answer is told by gRPC
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


def tls_refused(address: str, error: ssl.SSLError) -> str:
    """What went wrong between the certificates of two instances, and what to look at."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"The certificate shown at {address} is not trusted here ({error.verify_message}): check peer_tls_trust of this "
            "instance, and peer_tls_cert of that one."
        )
    reason = error.reason or str(error)
    _, alert, what = reason.partition("_ALERT_")
    if alert:
        return (
            f"The instance at {address} refused the certificate of this one ({what.replace('_', ' ').lower()}): check "
            "peer_tls_cert of this instance, and peer_tls_trust of that one."
        )
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return f"The instance at {address} speaks no TLS: give all instances peer_tls_cert and peer_tls_key, or none."
    return f"The instance at {address} cannot be spoken to by TLS: {reason.replace('_', ' ').lower()}."


def split(address: str) -> tuple[str, int]:
    """Host and port of "host:port", brackets taken off."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_for(host: str, names: Sequence[tuple[str, str]]) -> bool:
    """Whether a certificate with these names, as `ssl` tells them, may be shown there."""
    try:
        address = ip_address(host)
    except ValueError:
        named = [name.lower() for kind, name in names if kind == "DNS"]
        return not named or host.lower() in named or f"*.{host.lower().partition('.')[2]}" in named
    listed = [name for kind, name in names if kind == "IP Address"]
    return not listed or address in map(ip_address, listed)
