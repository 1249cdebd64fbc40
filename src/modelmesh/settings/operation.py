"""Settings of the life of an instance, and of what it tells meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from modelmesh.settings import exporting, parsing
from modelmesh.settings.exporting import Export, InfoMetric
from modelmesh.settings.setting import Setting


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Start and stop."""

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
            "pause after failures that may pass. Files that are not there are looked for again after a second.",
            "SECONDS",
            live=True,
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
            "File written once /ready answers 200, removed at exit: JSON with grpc, rest, ops, pid, and peer where there is one.",
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
            live=True,
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
            live=True,
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
