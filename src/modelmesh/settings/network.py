"""Settings of where clients are met, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from modelmesh.settings import parsing
from modelmesh.settings.setting import Setting


@dataclass(frozen=True, slots=True)
class Network:
    """Where it listens. Port 0: any free port."""

    host: Annotated[
        str,
        Setting(
            "host",
            parsing.text,
            "127.0.0.1",
            "Address to listen on, for all ports. 0.0.0.0: all interfaces.",
            "ADDR",
        ),
    ]
    grpc_port: Annotated[
        int, Setting("grpc_port", parsing.port, "8033", "gRPC: inference. 0: any free port.")
    ]
    rest_port: Annotated[
        int, Setting("rest_port", parsing.port, "8008", "REST: inference. 0: any free port.")
    ]
    ops_port: Annotated[
        int, Setting("ops_port", parsing.port, "8089", "Health, metrics and the admin API. 0: any free port.")
    ]
    probe_port: Annotated[
        int | None,
        Setting(
            "probe_port",
            parsing.optional_port,
            "none",
            "/ready and /live on a port of their own, besides the ops port. none: no such port.",
        ),
    ]
    prestop_port: Annotated[
        int | None,
        Setting(
            "prestop_port",
            parsing.optional_port,
            "none",
            "/prestop for containers beside this one: answered once this one has stopped serving. none: no such port.",
        ),
    ]
    connection_age_s: Annotated[
        float | None,
        Setting(
            "connection_age",
            parsing.optional_seconds,
            "none",
            "Seconds after which a gRPC connection is asked to end, a tenth more or less, so that clients spread. none: never.",
            "SECONDS",
        ),
    ]
    connection_age_grace_s: Annotated[
        float | None,
        Setting(
            "connection_age_grace",
            parsing.optional_seconds,
            "none",
            "Seconds its calls may take from then on. none: as long as they do.",
            "SECONDS",
        ),
    ]
    message_bytes_max: Annotated[
        int,
        Setting(
            "message_max",
            parsing.message_size,
            "16MiB",
            "Largest request or answer; beyond it RESOURCE_EXHAUSTED, or 413 over REST.",
            "SIZE",
        ),
    ]
    header_bytes_max: Annotated[
        int,
        Setting(
            "headers_max",
            parsing.headers_size,
            "16KiB",
            "Largest headers of a request, all together; beyond it the request is refused.",
            "SIZE",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Edges:
    """What clients meet at the gRPC and REST ports."""

    dataplane_config: Annotated[
        str | None,
        Setting(
            "dataplane_config",
            parsing.text,
            "",
            "Which methods are let in and where their messages name the model, as JSON. Default: every method, and the paths of "
            "the known protocols.",
            "JSON",
        ),
    ]
    dataplane_config_path: Annotated[
        Path | None,
        Setting(
            "dataplane_config_path",
            parsing.path,
            "",
            "File with that JSON instead; a change takes effect at once.",
            "FILE",
        ),
    ]
    tls_cert: Annotated[
        Path | None,
        Setting(
            "tls_cert",
            parsing.path,
            "",
            "Certificate of the gRPC and REST ports, with its issuers behind it (PEM); needs tls_key. A new file is picked up. "
            "Default: plain text.",
            "FILE",
        ),
    ]
    tls_key: Annotated[
        Path | None,
        Setting("tls_key", parsing.path, "", "Private key of that certificate (PEM).", "FILE"),
    ]
    tls_key_passphrase: Annotated[
        str | None,
        Setting(
            "tls_key_passphrase",
            parsing.secret,
            "",
            "Passphrase of an encrypted key (PKCS#8). Others can see flags: better given by the environment.",
            "TEXT",
        ),
    ]
    tls_client_auth: Annotated[
        str,
        Setting(
            "tls_client_auth",
            parsing.client_auth,
            "none",
            "Whether clients have to show a certificate: none, optional or require.",
            "WHETHER",
        ),
    ]
    tls_trust: Annotated[
        tuple[Path, ...] | None,
        Setting(
            "tls_trust",
            parsing.paths,
            "",
            "Certificates of authorities that clients' certificates may come from: PEM files, with commas between them. Default: "
            "those the system trusts.",
            "FILES",
        ),
    ]
    multi_parallelism: Annotated[
        int,
        Setting(
            "multi_parallelism",
            parsing.count,
            "4",
            "Models that a request which names several (repeated mm-model-id or mm-vmodel-id) is sent to at once.",
        ),
    ]
    pass_credentials: Annotated[
        bool,
        Setting(
            "pass_credentials",
            parsing.truth,
            "false",
            "true: model servers other than the built-in ones are sent authorization, proxy-authorization and cookie of clients.",
            "BOOL",
        ),
    ]
    payload_processors: Annotated[
        str | None,
        Setting(
            "payload_processors",
            parsing.text,
            "",
            "Where requests and responses are sent: http, https or logger URIs with spaces between them; the query filters by "
            "model, the fragment by method.",
            "URIS",
        ),
    ]
    payload_consumers: Annotated[
        int,
        Setting("payload_consumers", parsing.count, "2", "Threads that send them."),
    ]
    payload_queue: Annotated[
        int,
        Setting(
            "payload_queue",
            parsing.queue,
            "64",
            "Requests and responses that may wait to be sent; those beyond are dropped and counted.",
        ),
    ]
