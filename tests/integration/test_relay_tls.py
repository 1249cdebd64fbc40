"""TLS on the gRPC and REST ports: keys of all kinds, client certificates, certificates that change, handshakes that fail."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import PASSPHRASE, Authority, openssl
from relay_face import TIMEOUT_S, Face, relay_face, run

from modelmesh.dataplane.protocol import Replica, Tls
from modelmesh.errors import SettingsError

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


def tls(certificate: Path, key: Path, **more: Any) -> Tls:
    return Tls(certificate.read_bytes(), key.read_bytes(), **more)


async def ask(face: Face, authority: Authority, shown: tuple[Path, Path] | None = None) -> Code:
    """One request over a connection of its own, showing a certificate or none."""
    key = shown[1].read_bytes() if shown else None
    chain = shown[0].read_bytes() if shown else None
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes(), key, chain)
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(face.address, credentials, options) as channel:
        return (await face.ask(channel=channel)).code


def as_pkcs1(key: Path) -> None:
    openssl("rsa", "-in", str(key), "-traditional", "-out", str(key))


def as_sec1(key: Path) -> None:
    openssl("ec", "-in", str(key), "-out", str(key))


def sealed(key: Path) -> None:
    plain = key.rename(key.with_suffix(".plain"))
    openssl("pkcs8", "-topk8", "-in", str(plain), "-out", str(key), "-passout", f"pass:{PASSPHRASE}")


@pytest.mark.parametrize(
    ("name", "rsa", "convert", "begins"),
    [
        ("pkcs8", False, lambda key: None, "-----BEGIN PRIVATE KEY"),
        ("pkcs1", True, as_pkcs1, "-----BEGIN RSA PRIVATE KEY"),
        ("sec1", False, as_sec1, "-----BEGIN EC PRIVATE KEY"),
        ("sealed", True, sealed, "-----BEGIN ENCRYPTED PRIVATE KEY"),
    ],
)
def test_keys_of_all_kinds_serve(
    tmp_path: Path, authority: Authority, name: str, rsa: bool, convert: Callable[[Path], None], begins: str
) -> None:
    certificate, key = authority.issue(name, rsa=rsa)
    convert(key)
    assert begins in key.read_text()

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            face.plane.set_tls(tls(certificate, key, passphrase=PASSPHRASE))
            assert await ask(face, authority) == Code.OK
            assert (await face.ask()).code == Code.UNAVAILABLE, "plain text is not understood any more"

    run(test())


def test_clients_show_certificates_as_asked(tmp_path: Path, authority: Authority) -> None:
    strangers = Authority(tmp_path, "strangers")
    known, unknown = authority.issue("known"), strangers.issue("unknown")
    ours = authority.issue("server")
    trust = (strangers.certificate.read_bytes(), authority.certificate.read_bytes())

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            asked = [None, known, unknown]
            for client_auth, trusted, codes in (
                ("none", trust[1:], [Code.OK, Code.OK, Code.OK]),
                ("optional", trust[1:], [Code.OK, Code.OK, Code.UNAVAILABLE]),
                ("require", trust[1:], [Code.UNAVAILABLE, Code.OK, Code.UNAVAILABLE]),
                ("require", trust, [Code.UNAVAILABLE, Code.OK, Code.OK]),
            ):
                face.plane.set_tls(tls(*ours, client_auth=client_auth, trust_pem=trusted))
                assert [await ask(face, authority, shown) for shown in asked] == codes, client_auth
            assert face.plane.stats().counters["tls_failed"] >= 4

    run(test())


def test_a_new_certificate_serves_new_connections_and_a_broken_one_changes_nothing(
    tmp_path: Path, authority: Authority
) -> None:
    first, second = authority.issue("first"), authority.issue("second")

    async def subject(face: Face) -> str:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.set_alpn_protocols(["h2"])
        host, _, port = face.address.rpartition(":")
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        tls_object = writer.get_extra_info("ssl_object")
        assert tls_object.selected_alpn_protocol() == "h2"
        [[(_, name)]] = tls_object.getpeercert()["subject"]
        writer.transport.abort()
        return str(name)

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            face.plane.set_tls(tls(*first))
            credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
            async with grpc.aio.secure_channel(face.address, credentials) as channel:
                assert (await face.ask(channel=channel)).code == Code.OK
                assert await subject(face) == "first"
                for broken, says in (
                    (Tls(b"nonsense", first[1].read_bytes()), "no certificate"),
                    (Tls(first[0].read_bytes(), b"nonsense"), "no private key"),
                    (tls(second[0], first[1]), "cannot be used together"),
                    (tls(*first, client_auth="require", trust_pem=(b"",)), "trust list"),
                ):
                    with pytest.raises(SettingsError, match=says):
                        face.plane.set_tls(broken)
                assert await subject(face) == "first"
                face.plane.set_tls(tls(*second))
                assert await subject(face) == "second"
                assert (await face.ask(channel=channel)).code == Code.OK, "an old connection stays"

    run(test())


def test_a_sealed_key_needs_its_passphrase(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("closed")
    sealed(key)

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            for passphrase, says in (("", "give its passphrase"), ("wrong", "passphrase is wrong")):
                with pytest.raises(SettingsError, match=says):
                    face.plane.set_tls(tls(certificate, key, passphrase=passphrase))
            face.serve("iris", Replica(1, 1))
            assert (await face.ask()).code == Code.OK, "nothing has changed: plain text"

    run(test())


def test_handshakes_that_come_to_nothing_disturb_nobody(tmp_path: Path, authority: Authority) -> None:
    ours = authority.issue("patient")
    bystanders = 600  # more than the loops' bounds on handshakes together

    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            face.plane.set_tls(tls(*ours))
            credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
            async with grpc.aio.secure_channel(face.address, credentials) as channel:
                assert (await face.ask(channel=channel)).code == Code.OK
                host, _, port = face.address.rpartition(":")
                silent = [await asyncio.open_connection(host, int(port)) for _ in range(bystanders)]
                await face.until(
                    lambda: face.plane.stats().counters["tls_turned_away"] >= bystanders - 2 * 256
                )
                assert (await face.ask(channel=channel)).code == Code.OK
                for _, writer in silent:
                    writer.transport.abort()
                await face.until(lambda: face.plane.stats().counters["tls_failed"] >= 1)
                assert await ask(face, authority) == Code.OK
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100)
            async with asyncio.timeout(TIMEOUT_S):
                await reader.read()  # an alert, and the end
            writer.transport.abort()

    run(test())


def test_rest_speaks_tls_too(tmp_path: Path, authority: Authority) -> None:
    ours = authority.issue("rest")

    async def test() -> None:
        async with relay_face(tmp_path, rest_port=0) as face:
            face.plane.set_tls(tls(*ours))
            context = ssl.create_default_context(cafile=str(authority.certificate))
            context.set_alpn_protocols(["h2", "http/1.1"])
            host, _, port = face.rest.rpartition(":")
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
                assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
                writer.write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 404 ")
            writer.close()

    run(test())
