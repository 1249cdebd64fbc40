"""Type constraints in the predecessor's JSON, and the labels of runtimes that they ask for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from modelmesh.clock import LoopClock
from modelmesh.errors import SettingsError
from modelmesh.instance.model_root import ModelRoot
from modelmesh.instance.runtimes import build_runtimes
from modelmesh.instance.type_constraints import TypeConstraints, parse_constraints
from modelmesh.journal import Journal
from modelmesh.policy.runtimes import Constraint, choose
from modelmesh.settings.sources import read_settings
from modelmesh.testing.loop import run

JSON = '{"onnx": {"required": ["gpu", "fast"]}, "_default": {"preferred": ["cheap"]}, "free": {}}'


def test_the_predecessors_form() -> None:
    assert parse_constraints(JSON, "here") == {
        "onnx": Constraint(frozenset({"gpu", "fast"})),
        "_default": Constraint(preferred=frozenset({"cheap"})),
        "free": Constraint(),
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "here is not JSON"),
        ("[]", "here is not an object of model types"),
        ('{"a": []}', 'type "a" is not an object'),
        ('{"a": {"require": []}}', 'type "a" is not an object'),
        ('{"a": {"required": "gpu"}}', '"required" is not a list of labels'),
        ('{"a": {"preferred": [1]}}', '"preferred" is not a list of labels'),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_constraints(text, "here")


def test_runtimes_have_their_own_labels_and_those_of_the_instance(tmp_path: Path) -> None:
    environment = {"MM_LABELS": "gpu, ours", "MM_TYPE_CONSTRAINTS": JSON}
    flags = {"runtime": ["builtin", "host:1 labels=fast", "host:2 types=free"], "memory": "100MiB"}
    settings = read_settings(flags, environment)
    offers = [runtime.offer() for runtime in build_runtimes(settings, tmp_path, ModelRoot(None))]
    assert [sorted(offer.labels) for offer in offers] == [
        ["gpu", "ours"],
        ["fast", "gpu", "ours"],
        ["gpu", "ours"],
    ]
    table = TypeConstraints(settings.runtimes).table
    assert choose("onnx", offers, table) == 1
    assert choose("sklearn", offers, table) == 0
    assert choose("free", offers, table) == 2


def test_a_changed_file_changes_what_counts(tmp_path: Path) -> None:
    path = tmp_path / "constraints.json"
    path.write_text(JSON)
    constraints = TypeConstraints(read_settings({"type_constraints_path": str(path)}, {}).runtimes)
    table = constraints.table
    assert table["onnx"].required == {"gpu", "fast"}

    async def scenario() -> None:
        (watched,) = constraints.watched(Journal(LoopClock()))
        watching = asyncio.create_task(watched.run())
        path.write_text('{"onnx": {"required": ["tpu"]}}')
        await asyncio.sleep(3.0)
        watching.cancel()

    run(scenario())
    assert table == {"onnx": Constraint(frozenset({"tpu"}))}


def test_both_sources_are_one_too_many(tmp_path: Path) -> None:
    flags = {"type_constraints": "{}", "type_constraints_path": str(tmp_path / "x")}
    with pytest.raises(SettingsError, match="both given"):
        TypeConstraints(read_settings(flags, {}).runtimes)
    with pytest.raises(SettingsError, match="cannot be read"):
        TypeConstraints(read_settings({"type_constraints_path": str(tmp_path / "x")}, {}).runtimes)
