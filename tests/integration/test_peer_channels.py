"""Channels of the control plane to the peer ports of others, where both sides know each other by certificates."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from certificates import PASSPHRASE, Authority, openssl
from relay_face import relay_face, run

from modelmesh.dataplane.protocol import PeerTls
from modelmesh.errors import RuntimeUnavailable, SettingsError
from modelmesh.peers.dialling import MutualTls, is_for

OK = grpc.StatusCode.OK
Pair = tuple[Path, Path]
UNLOAD = "/modelmesh.peers.v1.Peers/Unload"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


async def answers(folder: Path, here: Pair, there: Pair, of_here: bytes, of_there: bytes) -> str:
    """What a call of an instance `here` to one `there` comes to: OK, or why not. The bytes are what each trusts."""
    tls = PeerTls(there[0].read_bytes(), there[1].read_bytes(), of_there)
    async with relay_face(folder, peer_port=0, peer_tls=tls) as face:
        sockets = folder / "sockets"
        sockets.mkdir()
        try:
            connection = await MutualTls(*here, of_here, sockets).dial(face.peer)
        except RuntimeUnavailable as error:
            return str(error)
        reply = await face.ask(method=UNLOAD, headers=(), channel=connection.channel, timeout_s=10.0)
        assert (reply.code is grpc.StatusCode.OK) is bool(face.control.requests)
        await connection.close()
        await connection.close()
        assert list(sockets.iterdir()) == []
        return connection.refusal or reply.code.name


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ("IP:127.0.0.1", "OK"),
        ("IP:10.0.0.1", "is for others: 10.0.0.1"),
        ("IP:10.0.0.1,IP:127.0.0.1", "OK"),
        ("DNS:mesh.models.svc", "OK"),
        ("DNS:*.models.svc", "OK"),
        ("DNS:mesh.models.svc,IP:10.0.0.1", "is for others: mesh.models.svc, 10.0.0.1"),
        ("URI:spiffe://models/mesh", "OK"),
        ("", "OK"),
    ],
)
def test_a_certificate_is_held_to_addresses_only_if_it_names_any(
    tmp_path: Path, authority: Authority, names: str, code: str
) -> None:
    async def test() -> None:
        here, there = authority.issue("here"), authority.issue("there", names=names)
        trusted = authority.certificate.read_bytes()
        assert code in await answers(tmp_path, here, there, trusted, trusted)

    run(test())


def test_who_has_no_such_certificate_is_no_instance(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    async def test() -> None:
        ours, theirs = authority.issue("ours"), stranger.issue("theirs")
        trusted, other = authority.certificate.read_bytes(), stranger.certificate.read_bytes()
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        refused = await answers(tmp_path / "a", ours, theirs, trusted, trusted + other)
        assert "is not trusted here (unable to get local issuer certificate): check peer_tls_trust" in refused
        told = await answers(tmp_path / "b", theirs, ours, trusted + other, trusted)
        assert re.search(
            r"refused the certificate of this one \(.+\): check peer_tls_cert of this instance", told
        )

    run(test())


def test_instances_may_share_one_certificate_however_it_was_made(
    tmp_path: Path, authority: Authority
) -> None:
    async def test() -> None:
        for name, pair in (
            ("issued", authority.issue("shared")),
            ("signs itself", (authority.certificate, authority.key)),
        ):
            (tmp_path / name).mkdir()
            shared = pair[0].read_bytes()
            assert await answers(tmp_path / name, pair, pair, shared, shared) == "OK", name

    run(test())


@pytest.mark.parametrize(
    ("host", "names", "taken"),
    [
        ("mesh-0.mesh.svc", [("DNS", "Mesh-0.mesh.svc")], True),
        ("mesh-0.mesh.svc", [("DNS", "*.mesh.svc")], True),
        ("mesh-0.mesh.svc", [("DNS", "*.svc"), ("DNS", "mesh-1.mesh.svc")], False),
        ("mesh-0.mesh.svc", [("IP Address", "10.0.0.1")], True),
        ("fd00::7", [("IP Address", "FD00:0:0:0:0:0:0:7")], True),
        ("fd00::7", [("IP Address", "FD00:0:0:0:0:0:0:8")], False),
    ],
)
def test_names_of_the_kind_that_was_dialled_count(
    host: str, names: list[tuple[str, str]], taken: bool
) -> None:
    assert is_for(host, names) is taken


def test_a_connection_that_breaks_ends_the_channel(tmp_path: Path, authority: Authority) -> None:
    async def test() -> None:
        pair = authority.issue("ours")
        trusted = authority.certificate.read_bytes()
        tls = PeerTls(pair[0].read_bytes(), pair[1].read_bytes(), trusted)
        async with relay_face(tmp_path, peer_port=0, peer_tls=tls) as face:
            connection = await MutualTls(*pair, trusted, tmp_path).dial(face.peer)
            assert (await face.ask(method=UNLOAD, headers=(), channel=connection.channel)).code is OK
            face.plane.stop()
            reply = await face.ask(method=UNLOAD, headers=(), channel=connection.channel)
            assert reply.code is grpc.StatusCode.UNAVAILABLE
            await connection.close()

    run(test())


def test_nobody_there_is_told_as_that(tmp_path: Path, authority: Authority) -> None:
    async def test() -> None:
        tls = MutualTls(*authority.issue("ours"), authority.certificate.read_bytes(), tmp_path)
        with pytest.raises(RuntimeUnavailable, match=r"127\.0\.0\.1:1 cannot be reached"):
            await tls.dial("127.0.0.1:1")

    run(test())


def test_what_cannot_be_used_is_a_sentence(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("ours")
    trusted = certificate.read_bytes()
    encrypted = tmp_path / "encrypted.key"
    openssl("pkcs8", "-topk8", "-in", str(key), "-out", str(encrypted), "-passout", f"pass:{PASSPHRASE}")
    for pair, trust, says in (
        ((certificate, encrypted), trusted, r"encrypted.key is encrypted; give peer_tls_key_pass"),
        ((certificate, authority.issue("other")[1]), trusted, r"ours.pem cannot be used: .*MISMATCH"),
        ((certificate, key), b"none", "ours.pem cannot be used"),
        ((tmp_path / "none", key), trusted, r"none cannot be used: .*No such file"),
    ):
        with pytest.raises(SettingsError, match=says):
            MutualTls(*pair, trust, tmp_path)
    with pytest.raises(SettingsError, match=r"ours.pem cannot be used"):
        MutualTls(certificate, encrypted, trusted, tmp_path, "wrong")
    MutualTls(certificate, encrypted, trusted, tmp_path, PASSPHRASE)
    MutualTls(certificate, key, trusted, tmp_path, "not needed")
