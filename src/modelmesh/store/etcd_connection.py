"""Where an etcd is and how to get in: a list of endpoints, or the predecessor's connection file.

The file is JSON (https://github.com/IBM/etcd-java/blob/main/etcd-json-schema.md): `endpoints`, and if needed `userid`,
`password`, `root_prefix`, `override_authority`, `certificate` (of the authority), `client_certificate`, `client_key`. These three
hold PEM themselves, or are named `..._file` and hold a path, which is relative to the folder of the connection file.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from modelmesh.errors import SettingsError

_SCHEMES: Final = {"http": False, "https": True}
_PEM: Final = {"trust": "certificate", "client_certificate": "client_certificate", "client_key": "client_key"}


@dataclass(frozen=True, slots=True)
class EtcdConnection:
    """Ready to be used: files are read. Nothing secret is shown by `repr`."""

    endpoints: tuple[str, ...]
    """host:port, at least one."""
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    root_prefix: str = ""
    """What all keys begin with, as it is: no slash is added or taken away."""
    trust: bytes | None = field(default=None, repr=False)
    """PEM of the authorities that etcd's certificate may come from; None: those the system trusts."""
    client_certificate: bytes | None = field(default=None, repr=False)
    client_key: bytes | None = field(default=None, repr=False)
    authority: str = ""
    """The name that etcd's certificate has to carry, at every endpoint; empty: the endpoint's own."""

    def keys_of(self, prefix: str, service: str) -> str:
        """What all keys of a mesh begin with: the predecessor's layout (reference mesh.md 2.1)."""
        return f"{self.root_prefix}/{prefix}/{service}/"

    def __str__(self) -> str:
        return ", ".join(self.endpoints)


def read_connection(where: str) -> EtcdConnection:
    """`where` is the path of a connection file, or endpoints with commas between them. Raises SettingsError with a sentence."""
    path = Path(where).expanduser()
    if where.strip() and path.is_file():
        return _from_file(path)
    if "://" not in where and "/" in where:
        raise SettingsError(f"store: the connection file {where} does not exist.")
    endpoints, tls = _endpoints(where, "store")
    return EtcdConnection(endpoints, tls=bool(tls), trust=_system_trust() if tls else None)


def _from_file(path: Path) -> EtcdConnection:
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"store: the connection file {path} cannot be read: {error}.") from error
    if not isinstance(fields, dict):
        raise SettingsError(f"store: the connection file {path} is not a JSON object.")
    source = f"endpoints in {path}"
    endpoints, tls = _endpoints(_text(fields, "endpoints", path), source)
    pem = {name: _pem(fields, key, path) for name, key in _PEM.items()}
    if tls is False and any(pem.values()):
        raise SettingsError(
            f"{source}: certificates are given, so they have to begin with https://, not http://."
        )
    if (pem["client_key"] is None) != (pem["client_certificate"] is None):
        raise SettingsError(
            f"store: {path} gives one of client_key and client_certificate: it takes both or none."
        )
    tls = bool(tls or any(pem.values()))
    user, password = _text(fields, "userid", path), _text(fields, "password", path)
    if password and not user:
        raise SettingsError(f"store: {path} gives a password without a userid.")
    return EtcdConnection(
        endpoints,
        tls=tls,
        user=user,
        password=password,
        root_prefix=_text(fields, "root_prefix", path),
        trust=pem["trust"] or (_system_trust() if tls else None),
        client_certificate=pem["client_certificate"],
        client_key=pem["client_key"],
        authority=_text(fields, "override_authority", path),
    )


def _endpoints(text: str, source: str) -> tuple[tuple[str, ...], bool | None]:
    """The endpoints as host:port, and whether their scheme asks for TLS (None: they have no scheme)."""
    endpoints, schemes = [], set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        scheme, found, rest = part.partition("://")
        address = rest.rstrip("/") if found else part
        host, _, port = address.rpartition(":")
        if (found and scheme not in _SCHEMES) or not host or not port.isdigit() or "/" in address:
            raise SettingsError(
                f'{source}: "{part}" is no endpoint of etcd: write host:port, http://host:port or https://host:port.'
            )
        schemes.add(_SCHEMES[scheme] if found else None)
        endpoints.append(address)
    if not endpoints:
        raise SettingsError(f"{source}: no endpoint of etcd is named; write host:port, several with commas.")
    if len(schemes) > 1:
        raise SettingsError(f"{source}: endpoints with and without https cannot be mixed.")
    return tuple(endpoints), schemes.pop()


def _text(fields: Mapping[str, Any], name: str, path: Path) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SettingsError(f"store: {name} in {path} is not a text.")
    return value


def _pem(fields: Mapping[str, Any], name: str, path: Path) -> bytes | None:
    if inline := _text(fields, name, path):
        return inline.encode()
    if not (file := _text(fields, f"{name}_file", path)):
        return None
    try:
        return (path.parent / file).read_bytes()
    except OSError as error:
        raise SettingsError(f"store: {name}_file in {path} cannot be read: {error}.") from error


def _system_trust() -> bytes | None:
    """The system's authorities; None, when it names no file of them, leaves the choice to gRPC."""
    cafile = ssl.get_default_verify_paths().cafile
    return Path(cafile).read_bytes() if cafile else None
