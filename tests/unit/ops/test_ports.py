"""Ports beside the ops port: which are opened, what they show, and TLS on the metrics port."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from modelmesh.clock import LoopClock
from modelmesh.errors import SettingsError
from modelmesh.journal import Journal
from modelmesh.ops.ports import Ports
from modelmesh.settings.sources import read_settings
from modelmesh.testing.control import FakeControlPlane
from modelmesh.testing.ops import parts_over


def opened(**settings: str) -> Ports:
    return Ports(read_settings({"ops_port": "0", **settings}, {}))


def ask(ports: Ports, look: Callable[[httpx.Client, str], object], *, name: str) -> object:
    """What `look` sees while the ports are served."""

    async def serve() -> object:
        async with ports.serving(parts_over(FakeControlPlane()), Journal(LoopClock())):
            url = ports.others[name]
            with httpx.Client(verify=False, timeout=10) as client:
                return await asyncio.to_thread(look, client, url)

    return asyncio.run(serve())


def statuses(client: httpx.Client, url: str) -> dict[str, int]:
    paths = ("/ready", "/live/", "/prestop", "/metrics", "/", "/models")
    return {path: client.get(url + path).status_code for path in paths}


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("probes", {"probe_port": "0"}, {"/ready", "/live/"}),
        ("prestop", {"prestop_port": "0"}, {"/prestop"}),
        ("metrics", {"metrics": "prometheus:port=0;scheme=http"}, {"/metrics"}),
    ],
)
def test_a_port_shows_its_own_and_nothing_else(name: str, settings: dict[str, str], found: set[str]) -> None:
    ports = opened(**settings)
    assert set(ports.others) == {name}
    seen = ask(ports, statuses, name=name)
    assert isinstance(seen, dict)
    assert {path for path, status in seen.items() if status == 200} == found
    assert {status for path, status in seen.items() if path not in found} == {404}


def test_what_the_ops_port_answers_under_the_same_number_is_not_opened_twice() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ports = opened(ops_port=port, probe_port=port, metrics=f"prometheus:port={port};scheme=http")
    assert ports.others == {}
    ports.close()
    with pytest.raises(SettingsError, match=rf"^--metrics: port {port} is taken"):
        opened(ops_port=port, metrics=f"prometheus:port={port}")


def test_a_taken_port_closes_those_that_were_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        with pytest.raises(SettingsError, match=r"^--prestop-port: port \d+ is taken"):
            opened(ops_port=str(port), prestop_port=str(taken.getsockname()[1]))
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_metrics_by_https_with_a_certificate_made_at_the_start() -> None:
    def look(client: httpx.Client, url: str) -> object:
        assert url.startswith("https://")
        return client.get(f"{url}/metrics").text

    text = ask(opened(metrics="prometheus:port=0"), look, name="metrics")
    assert isinstance(text, str) and "modelmesh_ready 1.0" in text


def test_without_certificate_and_library_https_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    ports = opened(metrics="prometheus:port=0")
    with pytest.raises(
        SettingsError, match=r"https needs a certificate\. Give tls_cert and tls_key, .*selfsigned"
    ):
        ask(ports, statuses, name="metrics")
    ports.close()


def test_a_certificate_of_the_settings_is_used_and_read_anew(tmp_path: Path) -> None:
    from modelmesh.ops.certificate import given

    certificate, key = written(tmp_path, "one")
    _, use = given(certificate, key, "")
    key.write_text("no key")
    with pytest.raises(SettingsError, match=r"cannot be used"):
        use()
    written(tmp_path, "two")
    use()
    with pytest.raises(SettingsError, match=r"cannot be read: No such file"):
        given(tmp_path / "missing.pem", key, "")


def test_the_given_certificate_is_shown(tmp_path: Path) -> None:
    certificate, key = written(tmp_path, "ours")
    ports = opened(metrics="prometheus:port=0", tls_cert=str(certificate), tls_key=str(key))

    def look(client: httpx.Client, url: str) -> object:
        host, _, port = url.removeprefix("https://").partition(":")
        return ssl.get_server_certificate((host, int(port)), timeout=10).strip()

    assert ask(ports, look, name="metrics") == certificate.read_text().strip()


def written(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate and its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    paths = folder / "tls.pem", folder / "tls.key"
    paths[0].write_bytes(made.public_bytes(pem))
    paths[1].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
