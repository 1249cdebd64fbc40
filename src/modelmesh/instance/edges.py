"""What clients meet at the ports, as the settings say: built once, and again when the files behind it change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from modelmesh.dataplane.protocol import DataPlane, Tls
from modelmesh.errors import SettingsError
from modelmesh.instance.watched_files import WatchedFiles
from modelmesh.journal import Journal
from modelmesh.settings.files import read_bytes, read_text
from modelmesh.settings.tree import Edges

if TYPE_CHECKING:
    from modelmesh.payloads.consumers import Consumers


def prepare(edges: Edges, dataplane: DataPlane, journal: Journal) -> list[WatchedFiles]:
    """Put in force what the settings say, before the data plane starts; what is returned is for the caller to run. Raises
    SettingsError with a sentence."""
    watched = []
    if (rules := _method_rules(edges, dataplane)) is not None:
        use, path = rules
        use()
        if path is not None:
            watched.append(WatchedFiles([path], use, journal, f"The data-plane config {path}"))
    if (tls := _tls(edges, dataplane)) is not None:
        use_tls, paths = tls
        use_tls()
        watched.append(WatchedFiles(paths, use_tls, journal, f"The TLS certificate {edges.tls_cert}"))
    return watched


def payload_consumers(edges: Edges, dataplane: DataPlane) -> Consumers | None:
    """What sends payloads on, not begun; None: there are no processors."""
    if edges.payload_processors is None:
        return None
    from modelmesh.payloads.addresses import parse_addresses
    from modelmesh.payloads.consumers import Consumers

    addresses = parse_addresses(edges.payload_processors)
    if not addresses:
        return None
    return Consumers(dataplane, addresses, n=edges.payload_consumers, queue_max=edges.payload_queue)


def _tls(edges: Edges, dataplane: DataPlane) -> tuple[Callable[[], None], list[Path]] | None:
    """How TLS is put in force, and the files it comes from; None: plain text."""
    certificate, key = edges.tls_cert, edges.tls_key
    if certificate is None and key is None:
        for name, given in (
            ("tls_client_auth", edges.tls_client_auth != "none"),
            ("tls_trust", edges.tls_trust is not None),
            ("tls_key_passphrase", edges.tls_key_passphrase is not None),
        ):
            if given:
                raise SettingsError(f"{name} is given but no certificate; give tls_cert and tls_key too.")
        return None
    if certificate is None or key is None:
        missing = "tls_cert" if certificate is None else "tls_key"
        raise SettingsError(f"{missing} is missing; TLS needs a certificate and its key.")
    trust = edges.tls_trust

    def use() -> None:
        dataplane.set_tls(
            Tls(
                certificate_pem=read_bytes(certificate, "tls_cert"),
                key_pem=read_bytes(key, "tls_key"),
                passphrase=edges.tls_key_passphrase or "",
                client_auth=cast(Literal["none", "optional", "require"], edges.tls_client_auth),
                trust_pem=None if trust is None else tuple(read_bytes(path, "tls_trust") for path in trust),
            )
        )

    return use, [certificate, key, *(trust or ())]


def _method_rules(edges: Edges, dataplane: DataPlane) -> tuple[Callable[[], None], Path | None] | None:
    """How the data-plane config is put in force, and the file it comes from if it does; None: there is no config."""
    inline, path = edges.dataplane_config, edges.dataplane_config_path
    if inline is None and path is None:
        return None
    if inline is not None and path is not None:
        raise SettingsError(
            "dataplane_config and dataplane_config_path are both given; which one is meant is not clear, so give only one."
        )
    from modelmesh.dataplane.method_config import parse_method_config

    def use() -> None:
        text = read_text(path, "dataplane_config_path") if path is not None else inline or ""
        dataplane.set_method_rules(*parse_method_config(text, str(path or "dataplane_config")))

    return use, path
