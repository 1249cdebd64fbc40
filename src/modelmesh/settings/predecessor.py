"""The predecessor's environment variables (KServe ModelMesh; reference mesh.md 11), each one in the table: carried by settings
of ours, ignored, or refused because going on without it would do harm. `docs/compatibility.md` shows this table; a test compares.

A setting reads its variables after flags, `MODELMESH_*` and the TOML file. An empty variable counts as not set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from modelmesh.errors import SettingsError


def _same(text: str) -> str:
    return text


def _milliseconds(text: str) -> str:
    """As seconds."""
    return f"{_whole(text, 'milliseconds') / 1000:g}"


def _failure_expiry(text: str) -> str:
    """As seconds, halved: the predecessor forgets a failure of a model that is in use after half the time it is given."""
    return f"{_whole(text, 'milliseconds') / 2000:g}"


def _seconds(text: str) -> str:
    return str(_whole(text, "seconds"))


def _bytes(text: str) -> str:
    return str(_whole(text, "bytes"))


def _pod_name(text: str) -> str:
    """The predecessor's instance id: the last 12 characters (the tail of the ReplicaSet's hash and the pod's suffix)."""
    return text.strip()[-12:]


def _pod_address(text: str) -> str:
    """All interfaces of that family: who runs in a pod is called from outside of it."""
    try:
        return "0.0.0.0" if ip_address(text.strip()).version == 4 else "::"
    except ValueError as error:
        raise ValueError("is not an IP address") from error


def _own_address(text: str) -> str:
    """Of this pod alone."""
    _pod_address(text)
    return text.strip()


def _replica_set(text: str) -> str:
    """The pod's ReplicaSet, by the hash between the names of Deployment and pod; empty for pods of others."""
    match = _OF_REPLICA_SET.fullmatch(text.strip())
    return match[1] if match else ""


def _plain(text: str) -> str:
    """`none` for false; what else is said leaves the certificates in force."""
    if text.strip().lower() not in ("true", "false"):
        raise ValueError("is neither true nor false")
    return "none" if text.strip().lower() == "false" else ""


def _local_port(text: str) -> str:
    if not text.strip().isdigit() or not 1 <= int(text) <= 65535:
        raise ValueError("is not a port from 1 to 65535")
    return f"localhost:{int(text)}"


def _socket(text: str) -> str:
    if not text.strip().startswith("/"):
        raise ValueError("is not the absolute path of a socket")
    return f"unix:{text.strip()}"


def _whole(text: str, unit: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"is not a whole number of {unit}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Carried:
    """Read by a setting. `names`: the variable and its older spellings; the first that is set counts. `translate` writes its
    value as a user of ours would, empty when that says nothing, or raises ValueError with the second half of a sentence. A
    variable that several settings read has a row for each; of the rows for one setting the first that says something counts."""

    names: tuple[str, ...]
    setting: str
    translate: Callable[[str], str] = _same
    says: str = ""
    """What differs, if anything."""
    in_pod: str = ""
    """What it is in a pod of the predecessor's manifests when it is not set, written as its value would be; empty: as ours."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Without effect; the start says so in one line."""

    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Set, it stops the start: to go on would do something else than what was asked for."""

    names: tuple[str, ...]
    reason: str


_JVM: Final = "it tunes a Java virtual machine, and there is none; --memory bounds the workers"
_OUTSIDE: Final = "it tells addresses outside of the cluster, and instances know each other by those inside"
_OF_REPLICA_SET: Final = re.compile(r".+-([a-z0-9]{5,10})-[a-z0-9]{5}")
_ELSEWHERE: Final = (
    "a model that a new instance cannot load is loaded by others, and it goes on with the rest"
)
_SIDECAR: Final = (
    "With neither set, in a pod without a folder to serve: /tmp/mmesh/grpc.sock, then port 8085, as there."
)
_EITHER: Final = (
    ("INTERNAL_GRPC_PORT", "INTERNAL_GRPC_SOCKET_PATH"),
    ("INTERNAL_SERVING_GRPC_PORT", "INTERNAL_SERVING_GRPC_SOCKET_PATH"),
)

_CERTIFICATE: Final = ("MM_TLS_KEY_CERT_PATH", "MM_SVC_GRPC_CA_CERT_PATH", "TAS_SVC_GRPC_CA_CERT_PATH")
_KEY: Final = (
    "MM_TLS_PRIVATE_KEY_PATH",
    "MM_SVC_GRPC_PRIVATE_KEY_PATH",
    "TAS_SVC_GRPC_PRIVATE_KEY_PATH",
)

_PASSPHRASE: Final = ("MM_TLS_PRIVATE_KEY_PASSPHRASE", "MM_SVC_GRPC_PRIVATE_KEY_PASSPHRASE")

_POD: Final = "WKUBE_POD_NAME"
"""Set by the predecessor's manifests, and required there."""

TABLE: Final[tuple[Carried | Ignored | Refused, ...]] = (
    # The registry.
    Carried(("MM_SERVICE_NAME", "TAS_SERVICE_NAME"), "service", says="Of use with KV_STORE only."),
    Carried(("KV_STORE",), "store", says="etcd only; zookeeper: stops the start."),
    Ignored(("LL_REGISTRY",), "instances find each other in the store of the registry"),
    Carried(("MM_KVSTORE_PREFIX",), "store_prefix"),
    Carried(("KV_READ_ONLY",), "read_only"),
    # Ports.
    Carried(("MM_SVC_GRPC_PORT", "TAS_SVC_GRPC_PORT"), "grpc_port", says="Unset: 8033, not no port at all."),
    Carried(
        ("MM_SVC_GRPC_MAX_MSG_SIZE",),
        "message_max",
        _bytes,
        "Beyond it RESOURCE_EXHAUSTED, not a reset stream.",
    ),
    Carried(
        ("MM_SVC_GRPC_MAX_HEADERS_SIZE",),
        "headers_max",
        _bytes,
        "Beyond it the one request is refused.",
    ),
    Carried(("MM_MULTI_PARALLELISM",), "multi_parallelism"),
    Carried(("MM_SVC_GRPC_MAX_CONNECTION_AGE_SECS",), "connection_age", _seconds),
    Carried(("MM_SVC_GRPC_MAX_CONNECTION_AGE_GRACE_SECS",), "connection_age_grace", _seconds),
    Carried(("MM_PROBE_PORT",), "probe_port", says="The ops port (8089 by default) answers them too."),
    Carried(
        ("MM_PRESTOP_WAIT_PORT",),
        "prestop_port",
        says="Unset: 8090 where `WKUBE_POD_NAME` is set, else no such port.",
        in_pod="8090",
    ),
    Carried(
        ("WKUBE_POD_IPADDR",), "host", _pod_address, "All interfaces, since a pod is called from outside."
    ),
    Carried(("WKUBE_POD_IPADDR",), "advertise", _own_address),
    # Runtimes beside this program.
    Carried(("INTERNAL_GRPC_PORT",), "runtime", _local_port, _SIDECAR),
    Carried(("INTERNAL_GRPC_SOCKET_PATH",), "runtime", _socket, _SIDECAR),
    Carried(("INTERNAL_SERVING_GRPC_PORT",), "runtime_serving", _local_port),
    Carried(("INTERNAL_SERVING_GRPC_SOCKET_PATH",), "runtime_serving", _socket),
    # Behaviour.
    Carried(("SHUTDOWN_TIMEOUT_MS",), "grace", _milliseconds),
    Ignored(("MM_SCALEUP_RPM_THRESHOLD",), "copies follow measured load, not a count of requests"),
    Ignored(
        ("MM_MAX_INFLIGHT_PER_MODEL_COPY",), "requests beyond what a copy can run wait in a bounded queue"
    ),
    Ignored(("MM_CONC_SCALEUP_BANDWIDTH_PCT",), "copies follow measured load, not a threshold"),
    Carried(
        ("MM_LOAD_FAILURE_EXPIRY_TIME_MS",),
        "load_failure_expiry",
        _failure_expiry,
        "Half of it, as for models in use there; passing failures are tried again sooner.",
    ),
    Ignored(("MM_FAILFAST_UPGRADE_ENABLED",), _ELSEWHERE),
    Ignored(("BOOTSTRAP_CLEARANCE_PERIOD_MS",), _ELSEWHERE),
    Carried(
        ("MM_LOCATION", "WKUBE_NODE_NAME", "WKUBE_NODE_IP"),
        "machine",
        says="Copies are spread over machines.",
    ),
    Carried(("MM_ZONE",), "zone", says="Copies are spread over zones."),
    Carried(("MM_LABELS",), "labels"),
    Carried(("MM_TYPE_CONSTRAINTS",), "type_constraints"),
    Carried(("MM_TYPE_CONSTRAINTS_PATH",), "type_constraints_path"),
    Carried(("MM_DATAPLANE_CONFIG",), "dataplane_config"),
    Carried(("MM_DATAPLANE_CONFIG_PATH",), "dataplane_config_path"),
    Carried(("MM_AUTO_REGISTER_MODELS", "MM_AUTO_REGISTER_MODEL"), "static_models"),
    Carried(("MM_AUTO_REGISTER_MODEL_PATH", "MM_AUTO_REGISTER_MODELS_PATH"), "static_models_path"),
    Carried(("MM_DEFAULT_VMODEL_OWNER",), "vmodel_owner"),
    # What is told.
    Carried(
        ("MM_METRICS",),
        "metrics",
        says="Unset: nothing is sent to statsd. A wrong parameter stops the start. The ops port answers /metrics too.",
    ),
    Carried(("MM_INFO_METRICS",), "info_metric"),
    Carried(("MM_LOG_PROMETHEUS_REQS",), "log_scrapes"),
    Ignored(
        ("MM_LOG_EACH_INVOKE",),
        "calls are moved without being looked at one by one; a logger URI in MM_PAYLOAD_PROCESSORS logs them",
    ),
    Carried(
        ("MM_LOG_REQUEST_HEADERS",),
        "log_request_headers",
        says="In lines about what a request caused (loads, refusals, failures); there are none for each request.",
    ),
    Carried(("MM_PAYLOAD_PROCESSORS",), "payload_processors"),
    Carried(("MM_PAYLOAD_PROCESSORS_THREADS",), "payload_consumers"),
    Carried(("MM_PAYLOAD_PROCESSORS_CAPACITY",), "payload_queue"),
    Carried(
        ("LL_TERMINATION_MSG_PATH",),
        "termination_message",
        says="Unset: /dev/termination-log if it is there.",
    ),
    # TLS.
    Carried(_CERTIFICATE, "tls_cert", says="New files are picked up."),
    Carried(_KEY, "tls_key", says="New files are picked up."),
    Carried(_PASSPHRASE, "tls_key_passphrase"),
    Carried(("MM_TLS_CLIENT_AUTH",), "tls_client_auth"),
    Carried(("MM_TLS_TRUST_CERT_PATH",), "tls_trust"),
    # Between instances.
    Carried(("MM_ENABLE_SSL",), "peer_tls_cert", _plain, "false: instances speak plain text to each other."),
    Carried(("MM_ENABLE_SSL",), "peer_tls_key", _plain),
    Carried(_CERTIFICATE, "peer_tls_cert", says="Instances show it to each other, too."),
    Carried(_KEY, "peer_tls_key"),
    Carried(_PASSPHRASE, "peer_tls_key_passphrase"),
    Carried(
        ("MM_INTERNAL_TRUST_CERTS", "MM_TRUST_CERTS"),
        "peer_tls_trust",
        says="Besides, whoever shows the same certificate is trusted, as there.",
    ),
    Ignored(
        ("MM_INTRACLUSTER_CLIENTAUTH",), "instances that have certificates always show them to each other"
    ),
    Ignored(
        ("MM_SEND_DEST_ID",),
        "an instance that is sent a request either serves it or says that it has no copy",
    ),
    # Where it runs.
    Carried((_POD,), "instance_id", _pod_name, "Its last 12 characters, as there."),
    Carried((_POD,), "revision", _replica_set, "The hash of its ReplicaSet."),
    Ignored(("WKUBE_SERVICE_NAME",), _OUTSIDE),
    Ignored(("WKUBE_SERVICE_PORT_NAME",), _OUTSIDE),
    Ignored(("SERVICE_VERSION",), "the version told is this program's own"),
    *(
        Ignored((name,), _JVM)
        for name in (
            "MEM_LIMIT_MB",
            "HEAP_SIZE_MB",
            "MAX_DIRECT_BUFS_MB",
            "MAX_GC_PAUSE",
            "CUSTOM_JVM_ARGS",
            "NETTY_BUFFER_CHECKS",
            "GC_DIAG",
        )
    ),
)


def check_refused(environment: Mapping[str, str]) -> None:
    """Raises SettingsError for the first variable that is set and must not be."""
    if (sentence := next(refused(environment), "")) != "":
        raise SettingsError(sentence)


def refused(environment: Mapping[str, str]) -> Iterator[str]:
    """One sentence for each variable that is set and stops the start."""
    for row in TABLE:
        if isinstance(row, Refused) and (name := _set_name(row.names, environment)):
            yield f'{name}: "{environment[name]}" cannot be used: {row.reason}.'
    for port, path in _EITHER:
        if environment.get(port) and environment.get(path):
            yield f"{port} and {path} are both set; where the runtime is is not clear, so set only one."


def ignored(environment: Mapping[str, str]) -> Iterator[str]:
    """One sentence for each variable that is set and has no effect."""
    for row in TABLE:
        if isinstance(row, Ignored):
            yield from (f"{name} is ignored: {row.reason}." for name in row.names if environment.get(name))


def in_pod(environment: Mapping[str, str]) -> bool:
    """Whether this runs as the predecessor does in Kubernetes."""
    return bool(environment.get(_POD))


def carried(setting: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable that gives this setting a value, and the value in our own writing; None when none is set. Raises SettingsError
    with a sentence that names the variable."""
    for row in TABLE:
        if not isinstance(row, Carried) or row.setting != setting:
            continue
        if name := _set_name(row.names, environment):
            try:
                said = row.translate(environment[name])
            except ValueError as error:
                raise SettingsError(f'{name}: "{environment[name]}" {error}.') from error
            if said:
                return name, said
        elif row.in_pod and environment.get(_POD):
            return row.names[0], row.translate(row.in_pod)
    return None


def _set_name(names: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    return next((name for name in names if environment.get(name)), None)
