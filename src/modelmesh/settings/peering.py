"""Settings of an instance among others: who it is, where the others reach it, by what certificates they know each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from modelmesh.settings import parsing
from modelmesh.settings.setting import Setting


@dataclass(frozen=True, slots=True)
class Peering:
    """Of use with a store that is shared; an instance with a store of its own is alone."""

    instance_id: Annotated[
        str | None,
        Setting(
            "instance_id",
            parsing.key_part,
            "",
            "Name of this instance in metrics and status, and among others that share its store. Default: a random one.",
            "ID",
        ),
    ]
    port: Annotated[
        int,
        Setting(
            "peer_port",
            parsing.port,
            "8080",
            "For other instances, if there is a store that they share: they send requests on and ask for loads here. 0: any free "
            "port.",
        ),
    ]
    advertise: Annotated[
        tuple[str, int | None] | None,
        Setting(
            "advertise",
            parsing.advertised,
            "",
            "Where other instances reach that port: HOST or HOST:PORT. Default: that of host, or, where host is all "
            "interfaces, the one by which the store is reached.",
            "HOST[:PORT]",
        ),
    ]
    zone: Annotated[
        str | None,
        Setting(
            "zone",
            parsing.text,
            "",
            "Where this instance runs; copies of a model are spread over zones. Default: none.",
            "NAME",
        ),
    ]
    machine: Annotated[
        str | None,
        Setting(
            "machine",
            parsing.text,
            "",
            "The machine it runs on, over which copies are spread after zones. Default: its host name.",
            "NAME",
        ),
    ]
    revision: Annotated[
        str | None,
        Setting(
            "revision",
            parsing.text,
            "",
            "Revision of the deployment: while a newer one takes over, new copies cost twice as much at instances of older ones. "
            "Default: none.",
            "NAME",
        ),
    ]
    tls_cert: Annotated[
        Path | None,
        Setting(
            "peer_tls_cert",
            parsing.optional_path,
            "",
            "Certificate that instances show each other (PEM), valid for servers and clients, with its issuers behind it; needs "
            "peer_tls_key. New files are picked up. Default: plain text; so does none.",
            "FILE",
        ),
    ]
    tls_key: Annotated[
        Path | None,
        Setting(
            "peer_tls_key",
            parsing.optional_path,
            "",
            "Private key of that certificate (PEM).",
            "FILE",
        ),
    ]
    tls_key_passphrase: Annotated[
        str | None,
        Setting(
            "peer_tls_key_passphrase",
            parsing.secret,
            "",
            "Passphrase of an encrypted key (PKCS#8). Others can see flags: better given by the environment.",
            "TEXT",
        ),
    ]
    tls_trust: Annotated[
        tuple[Path, ...] | None,
        Setting(
            "peer_tls_trust",
            parsing.paths,
            "",
            "Whose certificates are those of instances: PEM files of authorities, or folders of them, with commas between them. "
            "Default: only those that show the same certificate.",
            "FILES",
        ),
    ]
