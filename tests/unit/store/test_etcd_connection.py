"""The connection file, and everything that can be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelmesh.errors import SettingsError
from modelmesh.store.etcd_connection import read_connection


def written(folder: Path, **fields: object) -> str:
    path = folder / "etcd.json"
    path.write_text(json.dumps(fields))
    return str(path)


def test_endpoints_alone() -> None:
    connection = read_connection("http://10.0.0.1:2379, http://10.0.0.2:2379/,")
    assert connection.endpoints == ("10.0.0.1:2379", "10.0.0.2:2379")
    assert (connection.tls, connection.user, connection.root_prefix) == (False, "", "")
    assert not read_connection("etcd:2379").tls
    secure = read_connection("https://etcd:2379")
    assert secure.tls
    assert secure.trust is None or secure.trust.startswith(b"-----") or b"BEGIN" in secure.trust


def test_every_field(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("CA")
    (tmp_path / "elsewhere").mkdir()
    key = tmp_path / "elsewhere" / "client.key"
    key.write_text("KEY")
    connection = read_connection(
        written(
            tmp_path,
            endpoints="https://a:1,https://b:2",
            userid="me",
            password="secret",
            root_prefix="/team",
            certificate_file="ca.pem",
            client_key_file=str(key),
            client_certificate="CERTIFICATE",
            override_authority="etcd.internal",
            unknown=7,
        )
    )
    assert connection.endpoints == ("a:1", "b:2")
    assert connection.tls
    assert (connection.user, connection.password, connection.root_prefix) == ("me", "secret", "/team")
    assert (connection.trust, connection.client_key) == (b"CA", b"KEY")
    assert (connection.client_certificate, connection.authority) == (b"CERTIFICATE", "etcd.internal")
    assert "secret" not in repr(connection)
    assert "KEY" not in repr(connection)


def test_certificates_without_a_scheme_mean_tls(tmp_path: Path) -> None:
    assert read_connection(written(tmp_path, endpoints="etcd:2379", certificate="CA")).tls
    assert not read_connection(written(tmp_path, endpoints="etcd:2379", password="", userid=None)).tls


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "no endpoint of etcd is named"),
        ({"endpoints": 5}, "endpoints in .* is not a text"),
        ({"endpoints": "etcd"}, '"etcd" is no endpoint'),
        ({"endpoints": "ftp://etcd:1"}, '"ftp://etcd:1" is no endpoint'),
        ({"endpoints": "http://a:1,https://b:1"}, "cannot be mixed"),
        ({"endpoints": "a:1", "password": "x"}, "a password without a userid"),
        ({"endpoints": "a:1", "client_key": "x"}, "one of client_key and client_certificate"),
        ({"endpoints": "http://a:1", "certificate": "x"}, "have to begin with https://"),
        ({"endpoints": "a:1", "certificate_file": "none.pem"}, "certificate_file in .* cannot be read"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, fields: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        read_connection(written(tmp_path, **fields))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.json does not exist"):
        read_connection(str(tmp_path / "no.json"))
    path = tmp_path / "etcd.json"
    for text, says in (("{", "cannot be read"), ("[]", "is not a JSON object")):
        path.write_text(text)
        with pytest.raises(SettingsError, match=says):
            read_connection(str(path))
    with pytest.raises(SettingsError, match="no endpoint"):
        read_connection(" ")
