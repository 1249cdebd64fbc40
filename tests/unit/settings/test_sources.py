"""Sources in order, what is derived, and the sentences for what is wrong."""

import dataclasses
import re
from pathlib import Path

import pytest

from modelmesh.errors import SettingsError
from modelmesh.settings.sources import default_state, default_workers, described, read_settings


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "mesh.toml"
    config.write_text('grpc_port = 1\nrest_port = 1\nops_port = 1\nhost = "::1"\n')
    environment = {"MODELMESH_REST_PORT": "2", "MODELMESH_OPS_PORT": "2", "MODELMESH_CONFIG": str(config)}
    network = read_settings({"ops_port": 3, "host": None}, environment).network
    assert (network.grpc_port, network.rest_port, network.ops_port) == (1, 2, 3)
    assert network.host == "::1"
    assert network.message_bytes_max == 16 << 20


def test_what_is_left_open_is_derived(tmp_path: Path) -> None:
    settings = read_settings({"folder": tmp_path, "memory": "1GiB"}, {"XDG_STATE_HOME": "/states"})
    assert settings.models.model_root == tmp_path.resolve()
    assert settings.state.path is not None
    assert re.fullmatch(r"/states/modelmesh/[0-9a-f]{16}", str(settings.state.path))
    assert settings.memory.workers in (1, 2)


def test_each_folder_has_a_state_of_its_own(tmp_path: Path) -> None:
    assert default_state(tmp_path, {}) != default_state(tmp_path / "other", {})
    assert default_state(None, {}).name == "default"
    assert default_state(None, {"XDG_STATE_HOME": "relative, so ignored"}).is_relative_to(Path.home())


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.7", "10.0.0.7", None),
        ("10.0.0.7:81", "10.0.0.7", 81),
        ("mesh-0.mesh.svc:8080", "mesh-0.mesh.svc", 8080),
        ("fd00::7", "fd00::7", None),
        ("[fd00::7]", "fd00::7", None),
        ("[fd00::7]:81", "fd00::7", 81),
    ],
)
def test_where_others_reach_an_instance(text: str, host: str, port: int | None) -> None:
    assert read_settings({"advertise": text}, {}).peering.advertise == (host, port)


def test_state_in_memory_is_no_path() -> None:
    assert read_settings({"state": "memory"}, {}).state.path is None


def test_workers_by_cores_and_memory() -> None:
    assert default_workers(300 << 20, 8) == 1
    assert default_workers(2 << 30, 8) == 4
    assert default_workers(64 << 30, 8) == 8


@pytest.mark.parametrize(
    ("flags", "environment", "sentence"),
    [
        ({"memory": "12 parrots"}, {}, '--memory: "12 parrots" is not a size'),
        ({"grpc_port": 70000}, {}, '--grpc-port: "70000" is not a port'),
        ({}, {"MODELMESH_WORKERS": "0"}, 'MODELMESH_WORKERS: "0" is not a number from 1 to 1024'),
        ({"folder": "/no/such/folder"}, {}, 'FOLDER: "/no/such/folder" does not exist'),
        ({"log_format": "loud"}, {}, '--log-format: "loud" is none of auto, console, json'),
        ({"grace": "-1"}, {}, '--grace: "-1" is not a number of seconds'),
        ({"host": " "}, {}, '--host: " " is empty'),
        ({"advertise": "a b"}, {}, '--advertise: "a b" is neither HOST nor HOST:PORT'),
        ({"advertise": "host:"}, {}, '--advertise: "host:" is neither HOST nor HOST:PORT'),
        ({"advertise": "::"}, {}, '--advertise: "::" is no address that others can dial'),
        ({"advertise": "host:0"}, {}, '--advertise: "host:0" is not a port from 1 to 65535'),
        ({"instance_id": "a/b"}, {}, '--instance-id: "a/b" is empty, or contains a slash'),
        ({"message_max": "2GiB"}, {}, '--message-max: "2GiB" is not a size from 1KiB to just below 2GiB'),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(
    flags: dict[str, object], environment: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(flags, environment)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("grpc_prot = 1", "grpc_prot in .*there is no such setting"),
        ("grpc_port = [1]", r"grpc_port in .*\[1\] is neither a text nor a number"),
        ("grpc_port = true", "grpc_port in .*True is neither"),
        ("grpc_port = ", "--config: .* is not TOML"),
        ('memory = "0"', r'memory in .*"0" is not a size above 0'),
    ],
)
def test_a_wrong_file_is_named_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    config = tmp_path / "mesh.toml"
    config.write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        read_settings({}, {}, config)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        read_settings({}, {}, tmp_path / "none.toml")


def test_kubernetes_service_variables_are_passed_over() -> None:
    variables = {"MODELMESH_SERVICE_HOST": "10.0.0.1", "MODELMESH_PORT_8033_TCP": "tcp://10.0.0.1:8033"}
    assert read_settings({}, variables).network.host == "127.0.0.1"


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_settings({}, {}).network.host = "elsewhere"  # type: ignore[misc]


def test_the_settings_page_lists_exactly_these() -> None:
    page = (Path(__file__).parents[3] / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", page, re.MULTILINE))
    assert rows == {setting.name: setting.default or "see text" for _, setting in described()}
