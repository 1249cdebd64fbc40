"""The table of the predecessor's variables: complete, shown on its page, and obeyed in order."""

from pathlib import Path

import pytest

from modelmesh.errors import SettingsError
from modelmesh.settings.predecessor import TABLE, Carried, Ignored, Refused, ignored
from modelmesh.settings.runtimes import RuntimeChoice
from modelmesh.settings.sources import described, read_settings

NAMED = [
    "MM_SERVICE_NAME",
    "TAS_SERVICE_NAME",
    "KV_STORE",
    "LL_REGISTRY",
    "MM_KVSTORE_PREFIX",
    "KV_READ_ONLY",
    "MM_SVC_GRPC_PORT",
    "TAS_SVC_GRPC_PORT",
    "MM_SVC_GRPC_MAX_MSG_SIZE",
    "MM_SVC_GRPC_MAX_HEADERS_SIZE",
    "MM_SVC_GRPC_MAX_CONNECTION_AGE_SECS",
    "MM_SVC_GRPC_MAX_CONNECTION_AGE_GRACE_SECS",
    "MM_MULTI_PARALLELISM",
    "INTERNAL_GRPC_PORT",
    "INTERNAL_GRPC_SOCKET_PATH",
    "INTERNAL_SERVING_GRPC_PORT",
    "INTERNAL_SERVING_GRPC_SOCKET_PATH",
    "MM_PROBE_PORT",
    "MM_PRESTOP_WAIT_PORT",
    "SHUTDOWN_TIMEOUT_MS",
    "MM_SCALEUP_RPM_THRESHOLD",
    "MM_MAX_INFLIGHT_PER_MODEL_COPY",
    "MM_CONC_SCALEUP_BANDWIDTH_PCT",
    "MM_LOAD_FAILURE_EXPIRY_TIME_MS",
    "MM_FAILFAST_UPGRADE_ENABLED",
    "BOOTSTRAP_CLEARANCE_PERIOD_MS",
    "MM_LOCATION",
    "MM_ZONE",
    "MM_LABELS",
    "MM_TYPE_CONSTRAINTS",
    "MM_TYPE_CONSTRAINTS_PATH",
    "MM_DATAPLANE_CONFIG",
    "MM_DATAPLANE_CONFIG_PATH",
    "MM_AUTO_REGISTER_MODELS",
    "MM_AUTO_REGISTER_MODEL",
    "MM_AUTO_REGISTER_MODEL_PATH",
    "MM_AUTO_REGISTER_MODELS_PATH",
    "MM_DEFAULT_VMODEL_OWNER",
    "MM_METRICS",
    "MM_INFO_METRICS",
    "MM_LOG_PROMETHEUS_REQS",
    "MM_LOG_EACH_INVOKE",
    "MM_LOG_REQUEST_HEADERS",
    "MM_PAYLOAD_PROCESSORS",
    "MM_PAYLOAD_PROCESSORS_THREADS",
    "MM_PAYLOAD_PROCESSORS_CAPACITY",
    "MM_SEND_DEST_ID",
    "MM_TLS_KEY_CERT_PATH",
    "MM_TLS_PRIVATE_KEY_PATH",
    "MM_TLS_PRIVATE_KEY_PASSPHRASE",
    "MM_TLS_CLIENT_AUTH",
    "MM_TLS_TRUST_CERT_PATH",
    "MM_ENABLE_SSL",
    "MM_INTRACLUSTER_CLIENTAUTH",
    "MM_INTERNAL_TRUST_CERTS",
    "MM_TRUST_CERTS",
    "WKUBE_POD_NAME",
    "WKUBE_POD_IPADDR",
    "WKUBE_NODE_IP",
    "WKUBE_NODE_NAME",
    "WKUBE_SERVICE_NAME",
    "WKUBE_SERVICE_PORT_NAME",
    "SERVICE_VERSION",
    "LL_TERMINATION_MSG_PATH",
    "MEM_LIMIT_MB",
    "HEAP_SIZE_MB",
    "MAX_DIRECT_BUFS_MB",
    "MAX_GC_PAUSE",
    "CUSTOM_JVM_ARGS",
    "NETTY_BUFFER_CHECKS",
    "GC_DIAG",
]
"""Reference mesh.md 11, word for word."""


def page_row(row: Carried | Ignored | Refused, name: str) -> str:
    if isinstance(row, Carried):
        return f"| `{name}` | `{row.setting}` | {row.says or '-'} |"
    if isinstance(row, Ignored):
        return f"| `{name}` | ignored | {row.reason} |"
    return f"| `{name}` | stops the start | {row.reason} |"


def test_every_variable_is_in_the_table_once_for_each_setting_that_reads_it() -> None:
    carried = [(name, row.setting) for row in TABLE if isinstance(row, Carried) for name in row.names]
    others = [name for row in TABLE if not isinstance(row, Carried) for name in row.names]
    assert len(carried) == len(set(carried)) and len(others) == len(set(others))
    names = {name for name, _ in carried}
    assert not names & set(others)
    assert set(NAMED) <= names | set(others)


def test_what_is_carried_is_a_setting() -> None:
    settings = {setting.name for _, setting in described()}
    assert {row.setting for row in TABLE if isinstance(row, Carried)} <= settings


def test_the_page_shows_exactly_this_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "compatibility.md").read_text()
    section = page.partition("## Variables")[2].partition("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("| `")]
    assert shown == [page_row(row, name) for row in TABLE for name in row.names]


def test_they_come_after_all_other_sources(tmp_path: Path) -> None:
    old = {"MM_SVC_GRPC_PORT": "1", "TAS_SVC_GRPC_PORT": "2"}
    config = tmp_path / "mesh.toml"
    config.write_text("grpc_port = 3")
    assert read_settings({}, {}).network.grpc_port == 8033
    assert read_settings({}, {"TAS_SVC_GRPC_PORT": "2"}).network.grpc_port == 2
    assert read_settings({}, old).network.grpc_port == 1
    assert read_settings({}, old, config).network.grpc_port == 3
    assert read_settings({}, old | {"MODELMESH_GRPC_PORT": "4"}, config).network.grpc_port == 4
    assert read_settings({}, {"MM_SVC_GRPC_PORT": ""}).network.grpc_port == 8033


def test_units_and_forms_are_translated() -> None:
    settings = read_settings(
        {},
        {
            "SHUTDOWN_TIMEOUT_MS": "1500",
            "MM_LOAD_FAILURE_EXPIRY_TIME_MS": "900000",
            "MM_SVC_GRPC_MAX_MSG_SIZE": "1048576",
            "MM_SVC_GRPC_MAX_HEADERS_SIZE": "8192",
            "WKUBE_POD_NAME": "modelmesh-serving-mlserver-7d9f4c5b6-x2z8k",
            "WKUBE_POD_IPADDR": "10.1.2.3",
            "MM_TLS_CLIENT_AUTH": "REQUIRE",
            "LL_TERMINATION_MSG_PATH": "/tmp/ended",
            "MM_SVC_GRPC_MAX_CONNECTION_AGE_SECS": "600",
            "MM_LOG_REQUEST_HEADERS": '{"X-Request-Id": "request", "who-bin": "who"}',
        },
    )
    assert settings.lifecycle.grace_s == 1.5
    assert settings.network.connection_age_s == 600
    assert settings.network.connection_age_grace_s is None
    assert settings.logs.request_headers == (("x-request-id", "request"), ("who-bin", "who"))
    assert settings.lifecycle.load_failure_expiry_s == 450
    assert settings.network.message_bytes_max == 1 << 20
    assert settings.network.header_bytes_max == 8192
    assert settings.peering.instance_id == "4c5b6-x2z8k".rjust(12, "f")
    assert settings.network.host == "0.0.0.0"
    assert settings.edges.tls_client_auth == "require"
    assert settings.lifecycle.termination_message == Path("/tmp/ended")
    assert read_settings({}, {"WKUBE_POD_IPADDR": "fd00::7"}).network.host == "::"


def test_an_instance_among_others_is_who_the_pod_is() -> None:
    pod = {"WKUBE_POD_NAME": "mesh-runtime-7d9f4c5b6-x2z8k", "WKUBE_POD_IPADDR": "10.1.2.3"}
    peering = read_settings(
        {}, pod | {"MM_ZONE": "z1", "MM_LOCATION": "10.0.0.7", "WKUBE_NODE_NAME": "n"}
    ).peering
    assert (peering.advertise, peering.revision) == (("10.1.2.3", None), "7d9f4c5b6")
    assert (peering.zone, peering.machine, peering.port) == ("z1", "10.0.0.7", 8080)
    assert read_settings({}, {"WKUBE_NODE_NAME": "n"}).peering.machine == "n"
    for other in ("mesh-0", "pod", "mesh-7d9f4c5b6-x2z8"):
        assert read_settings({}, {"WKUBE_POD_NAME": other}).peering.revision is None
    assert read_settings({}, {}).peering.advertise is None


def test_instances_show_each_other_what_they_show_clients_unless_told_not_to() -> None:
    def files(**more: str) -> tuple[Path | None, Path | None, tuple[Path, ...] | None]:
        given = {"MM_TLS_KEY_CERT_PATH": "/tls.crt", "MM_TLS_PRIVATE_KEY_PATH": "/tls.key"}
        peering = read_settings({}, given | more).peering
        return peering.tls_cert, peering.tls_key, peering.tls_trust

    assert files() == (Path("/tls.crt"), Path("/tls.key"), None)
    assert files(MM_ENABLE_SSL="true", MM_TRUST_CERTS="/a,/b")[2] == (Path("/a"), Path("/b"))
    assert files(MM_ENABLE_SSL="false") == (None, None, None)
    assert files(MM_ENABLE_SSL="false", MODELMESH_PEER_TLS_CERT="/own.crt")[0] == Path("/own.crt")


def test_ports_beside_the_ops_port_are_as_the_manifests_expect() -> None:
    def ports(**environment: str) -> tuple[int | None, int | None]:
        network = read_settings({}, environment).network
        return network.probe_port, network.prestop_port

    assert ports() == (None, None)
    assert ports(WKUBE_POD_NAME="pod") == (None, 8090)
    assert ports(WKUBE_POD_NAME="pod", MM_PRESTOP_WAIT_PORT="NONE") == (None, None)
    assert ports(MM_PROBE_PORT="9000", MM_PRESTOP_WAIT_PORT="9001") == (9000, 9001)
    assert ports(MM_PROBE_PORT="NONE", MODELMESH_PROBE_PORT="9002") == (9002, None)


def runtimes(*, folder: Path | None = None, **environment: str) -> tuple[RuntimeChoice, ...]:
    flags = {} if folder is None else {"folder": str(folder)}
    return read_settings(flags, environment).runtimes.chosen


def test_the_runtime_is_where_the_variables_say(tmp_path: Path) -> None:
    (builtin,) = runtimes()
    assert builtin.is_builtin
    (port,) = runtimes(INTERNAL_GRPC_PORT="8086", INTERNAL_SERVING_GRPC_SOCKET_PATH="/run/s.sock")
    assert (port.addresses, port.serving_address) == (("localhost:8086",), "unix:/run/s.sock")
    (path,) = runtimes(INTERNAL_GRPC_SOCKET_PATH="/run/m.sock", INTERNAL_SERVING_GRPC_PORT="8001")
    assert (path.addresses, path.serving_address) == (("unix:/run/m.sock",), "localhost:8001")
    (ours,) = runtimes(INTERNAL_GRPC_PORT="8086", MODELMESH_RUNTIME="builtin")
    assert ours.is_builtin
    for pair in (
        {"INTERNAL_GRPC_PORT": "1", "INTERNAL_GRPC_SOCKET_PATH": "/a"},
        {"INTERNAL_SERVING_GRPC_PORT": "1", "INTERNAL_SERVING_GRPC_SOCKET_PATH": "/a"},
    ):
        with pytest.raises(SettingsError, match="are both set"):
            runtimes(**pair)


def test_the_default_candidates_are_for_pods_that_say_nothing_else(tmp_path: Path) -> None:
    beside = (RuntimeChoice("sidecar", ("unix:/tmp/mmesh/grpc.sock", "localhost:8085")),)
    assert runtimes(WKUBE_POD_NAME="pod") == beside
    assert runtimes(folder=tmp_path, WKUBE_POD_NAME="pod")[0].is_builtin
    (serving,) = runtimes(INTERNAL_SERVING_GRPC_PORT="8001")
    assert (serving.name, serving.serving_address) == ("sidecar", "localhost:8001")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MM_SVC_GRPC_PORT", "gRPC", "is not a port"),
        ("SHUTDOWN_TIMEOUT_MS", "30s", "is not a whole number of milliseconds"),
        ("MM_SVC_GRPC_MAX_MSG_SIZE", "16MiB", "is not a whole number of bytes"),
        ("MM_SVC_GRPC_MAX_HEADERS_SIZE", "12", "is not a size from 1KiB to 16MiB"),
        ("WKUBE_POD_IPADDR", "here", "is not an IP address"),
        ("MM_ENABLE_SSL", "no", "is neither true nor false"),
        ("MM_SVC_GRPC_MAX_CONNECTION_AGE_SECS", "0", "is neither none nor a number of seconds"),
        ("MM_SVC_GRPC_MAX_CONNECTION_AGE_SECS", "10m", "is not a whole number of seconds"),
        ("MM_LOG_REQUEST_HEADERS", "x", "is not JSON"),
        ("MM_LOG_REQUEST_HEADERS", "{}", "is not a JSON object of headers and fields"),
        ("MM_LOG_REQUEST_HEADERS", '{"a b": "c"}', 'has "a b": "c", which is no header'),
        ("MM_LOG_REQUEST_HEADERS", '{"a": 1}', 'has "a": 1, which is no header'),
        ("MM_TLS_CLIENT_AUTH", "MAYBE", "is none of"),
        ("KV_STORE", "zookeeper:zk:2181", "is a ZooKeeper, which is not supported"),
        ("KV_STORE", "etcd:", "is not etcd:FILE"),
        ("MM_SERVICE_NAME", "a/b", "is empty, or contains a slash"),
        ("INTERNAL_GRPC_PORT", "eighty", "is not a port"),
        ("INTERNAL_SERVING_GRPC_PORT", "80850", "is not a port"),
        ("INTERNAL_GRPC_SOCKET_PATH", "grpc.sock", "is not the absolute path"),
    ],
)
def test_a_wrong_value_stops_the_start_by_its_name(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({}, {name: value})
    assert str(caught.value).startswith(f'{name}: "{value}" {says}')


def test_each_ignored_variable_that_is_set_gets_one_line() -> None:
    lines = list(
        ignored({"HEAP_SIZE_MB": "640", "GC_DIAG": "", "MM_SEND_DEST_ID": "true", "MM_SVC_GRPC_PORT": "1"})
    )
    assert len(lines) == 2
    assert lines[0].startswith("MM_SEND_DEST_ID is ignored: an instance that is sent")
    assert lines[1].startswith("HEAP_SIZE_MB is ignored: it tunes a Java virtual machine")


def test_a_shared_registry_needs_the_name_of_its_mesh() -> None:
    with pytest.raises(SettingsError, match="service: a registry that is shared"):
        read_settings({}, {"KV_STORE": "etcd:/etc/etcd.json"})
    state = read_settings(
        {}, {"KV_STORE": "etcd:a:1,b:2", "TAS_SERVICE_NAME": "mesh", "MM_KVSTORE_PREFIX": "mm"}
    ).state
    assert (state.store, state.service, state.store_prefix) == ("a:1,b:2", "mesh", "mm")
    assert read_settings({}, {"MM_SERVICE_NAME": "mesh"}).state.store is None
