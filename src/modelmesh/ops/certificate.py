"""TLS of the metrics port: the certificate of the other ports, or one made at the start, as the predecessor does. A scraper
cannot check the latter; it only keeps others from reading along."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelmesh.errors import SettingsError

_VALID: Final = datetime.timedelta(days=3650)


def given(certificate: Path, key: Path, passphrase: str) -> tuple[ssl.SSLContext, Callable[[], None]]:
    """A context with this certificate, and what reads it anew for later connections. Both raise SettingsError with a sentence."""
    context = _context()

    def use() -> None:
        # Another context tries first: one that fails half-way is left with a certificate and no key.
        _load(_context(), certificate, key, passphrase)
        _load(context, certificate, key, passphrase)

    use()
    return context, use


def self_signed() -> ssl.SSLContext:
    """A context with a certificate and key of its own. Raises SettingsError when the library that makes them is missing."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise SettingsError(
            "--metrics: https needs a certificate. Give tls_cert and tls_key, write scheme=http, or install "
            "pymodelmesh[selfsigned], with which one is made."
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "modelmesh")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = _context()
    # Contexts are only loaded from files; this one is readable by this user alone, and gone at once.
    with tempfile.NamedTemporaryFile(suffix=".pem") as both:
        both.write(certificate.public_bytes(serialization.Encoding.PEM) + key_pem)
        both.flush()
        context.load_cert_chain(both.name)
    return context


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path, passphrase: str) -> None:
    try:
        # A text as password, if empty: otherwise an encrypted key would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password=passphrase)
    except ssl.SSLError as error:
        raise SettingsError(f"{certificate} and {key} cannot be used: {error.reason or error}.") from error
    except OSError as error:
        raise SettingsError(f"{certificate} or {key} cannot be read: {error.strerror}.") from error
