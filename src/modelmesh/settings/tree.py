"""The tree of settings: frozen values by concern. Each field says its unit, what nothing means, and why this default.

A setting has one name. `grpc_port` is the flag `--grpc-port`, the environment variable `MODELMESH_GRPC_PORT` and the
key `grpc_port` of the TOML file. `docs/settings.md` lists them all; a test compares it with this tree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from modelmesh.settings import exporting, parsing
from modelmesh.settings.exporting import Export, InfoMetric
from modelmesh.settings.runtimes import RuntimeChoice, parse_address, parse_labels, parse_runtimes


@dataclass(frozen=True, slots=True)
class Setting:
    """How a field is read. `default` is written as a user would write it; empty means that it is derived from other
    settings (`sources.read_settings`), or that there is nothing."""

    name: str
    parse: Callable[[str], Any]
    default: str
    says: str
    metavar: str = "N"
    """What stands for the value in a list of flags."""
    several: bool = False
    """Its flag may be repeated; other sources write several values with ";" between them."""


@dataclass(frozen=True, slots=True)
class Models:
    """What is served."""

    folder: Annotated[
        Path | None,
        Setting(
            "folder",
            parsing.folder,
            "",
            "Folder of models to serve; a model's name is its folder's.",
            "FOLDER",
        ),
    ]
    model_root: Annotated[
        Path | None,
        Setting(
            "model_root",
            parsing.folder,
            "",
            "Models registered by a local path must lie under this folder, because loading one runs its code. Default: the "
            "served folder; without one, registering by path is refused.",
            "DIR",
        ),
    ]
    static_models: Annotated[
        str | None,
        Setting(
            "static_models",
            parsing.text,
            "",
            "Models to register at every start, and to load where an entry says so, as JSON in the predecessor's form.",
            "JSON",
        ),
    ]
    static_models_path: Annotated[
        Path | None,
        Setting(
            "static_models_path", parsing.path, "", "File with such JSON; its models come first.", "FILE"
        ),
    ]
    vmodel_owner: Annotated[
        str | None,
        Setting(
            "vmodel_owner", parsing.text, "", "Owner of vmodels created without one. Default: none.", "NAME"
        ),
    ]


@dataclass(frozen=True, slots=True)
class Runtimes:
    """What the models run in."""

    chosen: Annotated[
        tuple[RuntimeChoice, ...],
        Setting(
            "runtime",
            parse_runtimes,
            "",
            "What serves the models, repeated for several: builtin, or a server of the mmesh.ModelRuntime contract at unix:PATH "
            "or HOST:PORT; in quotes with types=TYPE,TYPE if it is for those only, labels=LABEL,LABEL, and serving=ADDRESS if it "
            "serves elsewhere than it is managed; sidecar: where the predecessor looks. Default: builtin.",
            "RUNTIME",
            several=True,
        ),
    ]
    serving_address: Annotated[
        str | None,
        Setting(
            "runtime_serving",
            parse_address,
            "",
            "Where the one runtime given serves requests, if not where it is managed.",
            "ADDRESS",
        ),
    ]

    labels: Annotated[
        frozenset[str],
        Setting(
            "labels",
            parse_labels,
            "",
            "Labels of this instance, with commas between them: type constraints look for them, and for those of a runtime "
            "(labels= behind its address). Default: none.",
            "LABELS",
        ),
    ]
    type_constraints: Annotated[
        str | None,
        Setting(
            "type_constraints",
            parsing.text,
            "",
            "Which labels a model type requires or prefers of its runtime, as JSON in the predecessor's form.",
            "JSON",
        ),
    ]
    type_constraints_path: Annotated[
        Path | None,
        Setting(
            "type_constraints_path",
            parsing.path,
            "",
            "File with that JSON instead; a change takes effect at once.",
            "FILE",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Memory:
    """What the built-in runtime may use."""

    budget_bytes: Annotated[
        int,
        Setting(
            "memory",
            parsing.memory,
            "60%",
            'Memory the workers may use in all: a size ("500MiB", "2GB") or a share of the limit of the control group, or of '
            "the machine.",
            "SIZE",
        ),
    ]
    workers: Annotated[
        int,
        Setting(
            "workers",
            parsing.count,
            "",
            "Worker processes. Default: one per core, and one per 512 MiB of memory, whichever is less.",
        ),
    ]


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


@dataclass(frozen=True, slots=True)
class State:
    """Where registrations live."""

    path: Annotated[
        Path | None,
        Setting(
            "state",
            parsing.state,
            "",
            'Folder of the registry, or "memory" to keep nothing. Default: under the user\'s state folder ($XDG_STATE_HOME, else '
            "~/.local/state), by a hash of the served folder's path.",
            "PATH|memory",
        ),
    ]
    store: Annotated[
        str | None,
        Setting(
            "store",
            parsing.store,
            "",
            "The etcd in which the registry is shared with other instances: etcd: and then a connection file (JSON in the "
            "predecessor's form), or host:port, several with commas between them. Default: the registry is this machine's, under "
            "state.",
            "etcd:WHERE",
        ),
    ]
    service: Annotated[
        str | None,
        Setting(
            "service",
            parsing.key_part,
            "",
            "Name of the mesh, needed with store: instances of one name share one registry, others see nothing of it.",
            "NAME",
        ),
    ]
    store_prefix: Annotated[
        str,
        Setting(
            "store_prefix",
            parsing.key_part,
            "tas-runtime",
            "What the keys in the store begin with, before the name of the mesh; the default is the predecessor's.",
            "NAME",
        ),
    ]
    read_only: Annotated[
        bool,
        Setting(
            "read_only",
            parsing.truth,
            "false",
            "true: serve what is registered and change none of it; no vmodel moves, and no folder can be served.",
            "BOOL",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Who it is; start and stop."""

    instance_id: Annotated[
        str | None,
        Setting(
            "instance_id",
            parsing.text,
            "",
            "Name of this instance in metrics and status. Default: a random one.",
            "ID",
        ),
    ]
    termination_message: Annotated[
        Path | None,
        Setting(
            "termination_message",
            parsing.path,
            "",
            "File that gets the sentence of a failed start. Default: /dev/termination-log if it is there and can be written, "
            "which is where Kubernetes looks.",
            "FILE",
        ),
    ]
    load_failure_expiry_s: Annotated[
        float,
        Setting(
            "load_failure_expiry",
            parsing.seconds,
            "450",
            "Seconds after which a model whose artefact could not be loaded is tried again when asked for; also the longest "
            "pause after failures that may pass.",
            "SECONDS",
        ),
    ]

    inference_timeout_s: Annotated[
        float,
        Setting(
            "inference_timeout",
            parsing.patience,
            "60",
            "Seconds a built-in model may take over a batch; then its requests fail, and its worker is killed and replaced.",
            "SECONDS",
        ),
    ]

    ready_file: Annotated[
        Path | None,
        Setting(
            "ready_file",
            parsing.path,
            "",
            "File written once /ready answers 200, removed at exit: JSON with grpc, rest, ops and pid.",
            "PATH",
        ),
    ]
    grace_s: Annotated[
        float,
        Setting(
            "grace",
            parsing.seconds,
            "30",
            "Seconds a stop may take: requests in flight finish, then the workers end.",
            "SECONDS",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Logs:
    """What is told while running."""

    format: Annotated[
        str,
        Setting(
            "log_format",
            parsing.choice("auto", "console", "json"),
            "auto",
            "console, json, or auto: console on a terminal, json otherwise.",
            "FORMAT",
        ),
    ]
    level: Annotated[
        str,
        Setting(
            "log_level",
            parsing.choice("debug", "info", "warning", "error"),
            "info",
            "debug, info, warning or error.",
            "LEVEL",
        ),
    ]
    request_headers: Annotated[
        tuple[tuple[str, str], ...] | None,
        Setting(
            "log_request_headers",
            parsing.told_headers,
            "",
            "Headers whose values stand in log lines about what a request caused, as JSON: "
            '{"x-request-id": "request_id"} (header: field). Default: none.',
            "JSON",
        ),
    ]
    journal_file: Annotated[
        Path | None,
        Setting(
            "journal_file",
            parsing.path,
            "",
            "File that gets every journal entry as a line of JSON, besides the ring in memory.",
            "FILE",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where metrics go besides /metrics of the ops port."""

    export: Annotated[
        Export,
        Setting(
            "metrics",
            exporting.export,
            "disabled",
            'Metrics by other ways than the ops port, in the predecessor\'s form: "prometheus:port=2112;scheme=http", '
            '"statsd:port=8126", or disabled.',
            "WAY",
        ),
    ]
    info: Annotated[
        InfoMetric | None,
        Setting(
            "info_metric",
            exporting.info_metric,
            "",
            "A constant metric whose labels are environment variables: name;label=VARIABLE,label=VARIABLE. Default: none.",
            "TEXT",
        ),
    ]
    log_scrapes: Annotated[
        bool,
        Setting("log_scrapes", parsing.truth, "false", "true: one line of the log per scrape.", "BOOL"),
    ]


@dataclass(frozen=True, slots=True)
class Settings:
    """All of them. Made by `sources.read_settings`, once, at the start; passed down, never read again."""

    models: Models
    runtimes: Runtimes
    memory: Memory
    network: Network
    edges: Edges
    state: State
    lifecycle: Lifecycle
    logs: Logs
    metrics: Metrics
