"""Mutual TLS between instances: who is taken for an instance, and how keys change while requests run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from certificates import PASSPHRASE, Authority, openssl
from relay_face import CLIENT_OPTIONS, Face, relay_face, run

from modelmesh.dataplane.protocol import DataPlaneConfig, PeerTls, Replica, Route, Target, TargetLost
from modelmesh.dataplane.relay import Relay
from modelmesh.errors import SettingsError

Code = grpc.StatusCode
THERE = 101


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def tls(issued: tuple[Path, Path], *trusted: Authority) -> PeerTls:
    certificate, key = issued
    authorities = b"".join(authority.certificate.read_bytes() for authority in trusted)
    return PeerTls(certificate.read_bytes(), key.read_bytes(), authorities)


async def reaches(here: Face, there: Face, id: int = THERE) -> bool:
    """Whether a request gets to the other, over a connection that is made for it."""
    here.plane.set_targets([Target(id, there.peer, peer=True)], [])
    here.serve("iris", Replica(1000 + id, id))
    asked = here.ask()

    def ended() -> bool:
        lost = any(event == TargetLost(id) for event in here.events)
        return lost or asked.done()

    await here.until(ended)
    if not asked.done():
        asked.cancel()
        return False
    assert (await asked).code == Code.OK
    return True


async def both(folder: Path, of_here: PeerTls | None, of_there: PeerTls | None) -> bool:
    for name in ("here", "there"):
        (folder / name).mkdir()
    async with (
        relay_face(folder / "there", peer_port=0, peer_tls=of_there) as there,
        relay_face(folder / "here", peer_tls=of_here) as here,
    ):
        there.serve("iris", Replica(1, 1))
        return await reaches(here, there)


def test_instances_with_certificates_of_one_authority_talk(tmp_path: Path, authority: Authority) -> None:
    async def test() -> None:
        one, other = tls(authority.issue("one"), authority), tls(authority.issue("other"), authority)
        assert await both(tmp_path, one, other)

    run(test())


@pytest.mark.parametrize("side", ["here", "there", "here plain", "there plain"])
def test_who_has_no_such_certificate_is_no_instance(
    tmp_path: Path, authority: Authority, stranger: Authority, side: str
) -> None:
    async def test() -> None:
        ours = tls(authority.issue("one"), authority)
        # It would take ours; ours does not take it.
        other = None if "plain" in side else tls(stranger.issue("other"), stranger, authority)
        assert not await both(tmp_path, *((other, ours) if "here" in side else (ours, other)))

    run(test())


def test_a_client_without_a_certificate_is_turned_away(tmp_path: Path, authority: Authority) -> None:
    async def test() -> None:
        ours = tls(authority.issue("one"), authority)
        async with relay_face(tmp_path, peer_port=0, peer_tls=ours) as face:
            credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
            async with grpc.aio.secure_channel(face.peer, credentials, CLIENT_OPTIONS) as channel:
                reply = await face.ask(method="/modelmesh.peers.v1.Peers/Load", headers=(), channel=channel)
            assert reply.code == Code.UNAVAILABLE and not face.control.requests
            assert face.plane.stats().counters["tls_failed"] >= 1
            # What clients are served by has nothing to do with it.
            face.serve("iris", Replica(1, 1))
            assert (await face.ask()).code == Code.OK

    run(test())


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("IP:127.0.0.1", True),
        ("IP:10.0.0.1", False),
        ("IP:10.0.0.1,IP:127.0.0.1", True),
        ("DNS:mesh.models.svc", True),
        ("DNS:mesh.models.svc,IP:10.0.0.1", False),
        ("URI:spiffe://models/mesh", True),
        ("", True),
    ],
)
def test_a_certificate_is_held_to_addresses_only_if_it_names_any(
    tmp_path: Path, authority: Authority, names: str, taken: bool
) -> None:
    async def test() -> None:
        one, other = authority.issue("one"), authority.issue("other", names=names)
        assert await both(tmp_path, tls(one, authority), tls(other, authority)) is taken

    run(test())


@pytest.mark.parametrize(
    ("use", "told"), [("serverAuth", "a client"), ("clientAuth", "a server"), ("clientAuth,serverAuth", "")]
)
def test_a_certificate_is_for_servers_and_for_clients(
    tmp_path: Path, authority: Authority, use: str, told: str
) -> None:
    async def test() -> None:
        mine = tls(authority.issue("mine", use=use), authority)
        if told:
            with pytest.raises(SettingsError, match=f"as that of {told}"):
                Relay(DataPlaneConfig(control_socket="unused", peer_tls=mine))
        else:
            assert await both(tmp_path, mine, mine)

    run(test())


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path, authority: Authority) -> None:
    async def test() -> None:
        certificate, key = authority.issue("one")
        sealed = tmp_path / "sealed.key"
        openssl("pkcs8", "-topk8", "-in", str(key), "-out", str(sealed), "-passout", f"pass:{PASSPHRASE}")
        good = replace(tls((certificate, sealed), authority), passphrase=PASSPHRASE)
        assert await both(tmp_path, good, tls((certificate, key), authority))
        for passphrase, told in (("", "The key is encrypted"), ("wrong", "cannot be decrypted")):
            with pytest.raises(SettingsError, match=told):
                Relay(DataPlaneConfig("unused", peer_tls=replace(good, passphrase=passphrase)))

    run(test())


def test_instances_may_share_one_certificate_however_it_was_made(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    async def test() -> None:
        other = authority.issue("another")
        for name, pair, there, taken in (
            ("issued", authority.issue("shared"), None, True),
            ("for servers", authority.issue("server", use="serverAuth"), None, True),
            ("signs itself", (authority.certificate, authority.key), None, True),
            ("another", authority.issue("shared"), tls(other, authority), False),
        ):
            (tmp_path / name).mkdir()
            shared = PeerTls(pair[0].read_bytes(), pair[1].read_bytes(), pair[0].read_bytes())
            assert await both(tmp_path / name, shared, there or shared) is taken, name

    run(test())


def test_keys_that_cannot_be_used_are_refused_with_a_sentence(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    async def test() -> None:
        ours = authority.issue("one")
        good = tls(ours, authority)
        for name in ("here", "there"):
            (tmp_path / name).mkdir()
        async with (
            relay_face(tmp_path / "there", peer_port=0, peer_tls=good) as there,
            relay_face(tmp_path / "here", peer_tls=good) as here,
        ):
            bad = [
                (PeerTls(b"", good.key_pem, good.trusted_pem), "certificate file for peers holds no certif"),
                (PeerTls(good.certificate_pem, b"", good.trusted_pem), "holds no private key"),
                (
                    PeerTls(good.certificate_pem, good.key_pem, b"none"),
                    "trust list for peers holds no certif",
                ),
                (tls((ours[0], authority.issue("two")[1]), authority), "cannot be used together"),
                (tls(ours, stranger), "Other instances would refuse the certificate"),
            ]
            for keys, sentence in bad:
                with pytest.raises(SettingsError, match=sentence):
                    there.plane.set_peer_tls(keys)
            there.serve("iris", Replica(1, 1))
            assert await reaches(here, there), "those before stay in force"

    run(test())


def test_an_authority_is_replaced_step_by_step(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    """Trust both, change certificates, trust the new one only: nobody is cut off at any step."""

    async def test() -> None:
        before, after = authority.issue("before"), stranger.issue("after")
        steps = [
            (tls(before, authority), tls(before, authority, stranger)),
            (tls(before, authority, stranger), tls(before, authority, stranger)),
            (tls(before, authority, stranger), tls(after, authority, stranger)),
            (tls(after, authority, stranger), tls(after, authority, stranger)),
            (tls(after, stranger), tls(after, authority, stranger)),
            (tls(after, stranger), tls(after, stranger)),
        ]
        for name in ("here", "there"):
            (tmp_path / name).mkdir()
        first = tls(before, authority)
        async with (
            relay_face(tmp_path / "there", peer_port=0, peer_tls=first) as there,
            relay_face(tmp_path / "here", peer_port=0, peer_tls=first) as here,
        ):
            there.plane.publish([Route("iris", (Replica(1, 1),))])
            assert await reaches(here, there)
            for id, (of_here, of_there) in enumerate(steps, THERE + 1):
                here.plane.set_peer_tls(of_here)
                there.plane.set_peer_tls(of_there)
                here.plane.publish([Route("iris", (Replica(1000 + THERE, THERE),))])
                assert (await here.ask()).code == Code.OK, "the connection that is there stays"
                assert await reaches(here, there, id)
            there.plane.set_peer_tls(tls(before, authority))
            assert not await reaches(here, there, THERE + 100)

    run(test())
