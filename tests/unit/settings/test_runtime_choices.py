"""Runtimes as a user writes them."""

from pathlib import Path

import pytest

from modelmesh.errors import SettingsError
from modelmesh.settings.runtimes import RuntimeChoice, parse_runtimes
from modelmesh.settings.sources import read_settings


def test_several_with_their_options() -> None:
    assert parse_runtimes("unix:/run/a.sock types=onnx,torch; host:1 serving=host:2 ;builtin") == (
        RuntimeChoice("unix:/run/a.sock", ("unix:/run/a.sock",), "", frozenset({"onnx", "torch"})),
        RuntimeChoice("host:1", ("host:1",), "host:2"),
        RuntimeChoice("builtin"),
    )
    assert parse_runtimes("builtin labels=a,b")[0].labels == {"a", "b"}
    assert parse_runtimes("unix:///run/a.sock")[0].addresses == ("unix:/run/a.sock",)
    assert parse_runtimes("[::1]:8085")[0].addresses == ("[::1]:8085",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (" ; ", "names no runtime"),
        ("host:1;host:1", "twice"),
        ("host", "neither unix:/path nor host:port"),
        ("host:0", "neither unix:/path nor host:port"),
        ("host:70000", "neither unix:/path nor host:port"),
        ("unix:a.sock", "must be absolute"),
        ("host:1 label=gpu", "there may be types="),
        ("host:1 types=", "there may be types="),
        ("host:1 types=a types=b", "there may be types="),
        ("host:1 serving=x", "neither unix:/path nor host:port"),
        ("builtin types=sklearn", "more than labels"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_runtimes(text)


def test_flags_repeat_and_other_sources_write_semicolons(tmp_path: Path) -> None:
    by_flags = read_settings({"runtime": ["builtin", "host:1 types=onnx"]}, {}).runtimes.chosen
    by_variable = read_settings({}, {"MODELMESH_RUNTIME": "builtin; host:1 types=onnx"}).runtimes.chosen
    assert by_flags == by_variable
    assert [choice.name for choice in by_flags] == ["builtin", "host:1"]


def test_a_folder_needs_the_builtin_runtime(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="add --runtime builtin"):
        read_settings({"folder": str(tmp_path), "runtime": ["host:1"]}, {})
    assert (
        len(read_settings({"folder": str(tmp_path), "runtime": ["host:1", "builtin"]}, {}).runtimes.chosen)
        == 2
    )


def test_one_serving_address_is_for_one_runtime_outside() -> None:
    flags = {"runtime": ["host:1"], "runtime_serving": "host:2"}
    assert read_settings(flags, {}).runtimes.chosen[0].serving_address == "host:2"
    for runtimes in (["host:1", "host:3"], ["builtin"], ["host:1 serving=host:4"]):
        with pytest.raises(SettingsError, match="it is for one runtime outside"):
            read_settings({"runtime": runtimes, "runtime_serving": "host:2"}, {})
