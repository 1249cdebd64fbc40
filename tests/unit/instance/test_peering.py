"""Who an instance is among others, and where they are told to reach it."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from modelmesh.errors import SettingsError
from modelmesh.instance.peering import Neighbours, member_of
from modelmesh.policy.runtimes import Offer
from modelmesh.settings.sources import read_settings
from modelmesh.settings.tree import Settings
from modelmesh.store.memory import MemoryStore

BUILTIN = Offer("builtin", frozenset({"sklearn"}), frozenset({"cpu"}))
ANY = Offer("triton")


def settings(**flags: object) -> Settings:
    return read_settings(flags, {})


def neighbours_of(settings: Settings, *endpoints: str) -> Neighbours:
    return Neighbours(settings, MemoryStore(), endpoints, member_of(settings, [ANY], 1.0), Path("unused"))


def reached(bound: str, *, endpoints: tuple[str, ...] = ("127.0.0.1:2379",), **flags: object) -> str:
    neighbours = neighbours_of(settings(**flags), *endpoints)
    neighbours.open_at(bound)
    return neighbours.peers.me.address


def test_the_record_says_what_placing_copies_needs() -> None:
    flags = {"instance_id": "a", "zone": "z1", "machine": "m", "labels": "gpu,big", "revision": "r"}
    me = member_of(settings(**flags), [BUILTIN], 17.5)
    assert (me.id, me.epoch, me.zone, me.host, me.revision) == ("a", 17500, "z1", "m", "r")
    assert me.labels == {"gpu", "big", "cpu"}
    assert me.model_types == {"sklearn"}
    assert me.started_wall_ms == 17500
    assert me.version
    other = member_of(settings(), [BUILTIN, ANY], 17.5)
    assert other.model_types == frozenset(), "a runtime that takes any type makes it any"
    assert other.host == socket.gethostname()
    assert other.id != member_of(settings(), [ANY], 17.5).id


def test_where_it_listens_is_where_it_is_reached() -> None:
    assert reached("127.0.0.1:4000") == "127.0.0.1:4000"
    assert reached("[::1]:4000") == "[::1]:4000"


def test_on_all_interfaces_the_one_towards_the_store_counts() -> None:
    assert reached("0.0.0.0:4000") == "127.0.0.1:4000"
    assert reached("0.0.0.0:4000", endpoints=("no.such.host.invalid:1", "127.0.0.1:1")) == "127.0.0.1:4000"
    with pytest.raises(SettingsError, match=r"advertise: the address .* is not clear"):
        reached("0.0.0.0:4000", endpoints=("no.such.host.invalid:1",))


def test_what_is_advertised_wins() -> None:
    assert reached("0.0.0.0:4000", advertise="10.0.0.7") == "10.0.0.7:4000"
    assert reached("0.0.0.0:4000", advertise="mesh-0.mesh:81") == "mesh-0.mesh:81"
    assert reached("0.0.0.0:4000", advertise="fd00::7") == "[fd00::7]:4000"


def test_an_address_of_this_machine_alone_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reached("127.0.0.1:4000", endpoints=("127.0.0.1:2379", "localhost:2379"))
        assert not caplog.records
        reached("127.0.0.1:4000", endpoints=("10.0.0.1:2379",))
    assert "look for this one at 127.0.0.1:4000, which is their own" in caplog.text


def test_half_a_certificate_stops_the_start(tmp_path: Path) -> None:
    for flags, says in (
        ({"peer_tls_cert": "a"}, "peer_tls_key is missing"),
        ({"peer_tls_key": "a"}, "peer_tls_cert is missing"),
        ({"peer_tls_trust": "a"}, "peer_tls_trust is given but no certificate"),
        (
            {"peer_tls_cert": tmp_path / "a", "peer_tls_key": tmp_path / "b"},
            "peer_tls_cert: .* cannot be read",
        ),
    ):
        with pytest.raises(SettingsError, match=says):
            neighbours_of(settings(**flags), "127.0.0.1:1")
