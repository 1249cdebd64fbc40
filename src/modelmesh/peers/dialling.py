"""Channels to other instances: in plain text, or where both sides know each other by certificates.

Instances are dialled where their records say, mostly by addresses nobody issues certificates for. So a certificate is held to
the address only if it names any of that kind, as the data plane does (docs/tls.md). gRPC knows no such rule; so the names are
read from a handshake of its own, and gRPC is told to expect one of them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from modelmesh.errors import RuntimeUnavailable, SettingsError

if TYPE_CHECKING:
    import grpc
    import grpc.aio

HANDSHAKE_S: Final = 5.0
_OPTIONS: Final[Sequence[tuple[str, int | str]]] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", -1),
)

Dial = Callable[[str], Awaitable["grpc.aio.Channel"]]
"""Opens a channel to an address. Raises RuntimeUnavailable with a sentence."""


async def dial(address: str) -> grpc.aio.Channel:
    """Without certificates."""
    import grpc.aio

    return grpc.aio.insecure_channel(address, options=_OPTIONS)


class MutualTls:
    """With certificates: files in PEM, as they are when this is made."""

    def __init__(self, certificate: Path, key: Path, trusted_pem: bytes) -> None:
        """`trusted_pem`: authorities, and certificates that are trusted themselves. Raises SettingsError."""
        import grpc

        self._context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols(["h2"])
        try:
            context.load_cert_chain(certificate, key, password=_encrypted)
            context.load_verify_locations(cadata=trusted_pem.decode("ascii"))
            pair = key.read_bytes(), certificate.read_bytes()
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise SettingsError(
                f"The certificate for peers {certificate} cannot be used: {error}."
            ) from error
        self._credentials = grpc.ssl_channel_credentials(trusted_pem, *pair)

    async def dial(self, address: str) -> grpc.aio.Channel:
        """See `Dial`."""
        import grpc.aio

        options = [*_OPTIONS]
        if expected := _expected(address, await self._names(address)):
            options.append(("grpc.ssl_target_name_override", expected))
        return grpc.aio.secure_channel(address, self._credentials, options=options)

    async def _names(self, address: str) -> tuple[tuple[str, str], ...]:
        """What the certificate shown at the address is for, as (kind, name)."""
        host, port = split(address)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                _, writer = await asyncio.open_connection(host, port, ssl=self._context)
        except (OSError, TimeoutError) as error:
            raise RuntimeUnavailable(
                f"The instance at {address} cannot be reached: {error or f'no handshake within {HANDSHAKE_S:g} s'}."
            ) from error
        shown = writer.get_extra_info("peercert") or {}
        writer.transport.abort()
        return tuple(shown.get("subjectAltName", ()))


def split(address: str) -> tuple[str, int]:
    """Host and port of "host:port", brackets taken off."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _expected(address: str, names: tuple[tuple[str, str], ...]) -> str:
    """The name that gRPC is to find in the certificate in place of the host; empty: the host itself."""
    host, _ = split(address)
    try:
        ip_address(host)
        kind = "IP Address"
    except ValueError:
        kind = "DNS"
    if not names or any(of == kind for of, _ in names):
        return ""
    return names[0][1].replace("*", "any", 1)


def _encrypted() -> str:
    raise SettingsError(
        "The key for peers is encrypted, and nobody asks for its passphrase: give it without one."
    )
