"""Which runtimes an instance has, and what may be registered with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmesh.errors import FailedPrecondition
from modelmesh.instance.model_root import ModelRoot
from modelmesh.instance.runtimes import admission, build_runtimes
from modelmesh.mesh.control import Registration
from modelmesh.settings.sources import read_settings

OPAQUE = Registration("m", "any type", "s3://bucket/../key", '{"storage_params": {}}')


def admit(tmp_path: Path, runtimes: list[str], registration: Registration) -> Registration:
    settings = read_settings({"runtime": runtimes, "memory": "100MiB"}, {})
    root = ModelRoot(tmp_path)
    return admission(build_runtimes(settings, tmp_path, root), root, {})(registration)


def test_what_runtimes_outside_are_for_is_passed_on_as_it_is(tmp_path: Path) -> None:
    assert admit(tmp_path, ["host:1"], OPAQUE) == OPAQUE
    assert admit(tmp_path, ["builtin", "host:1"], OPAQUE) == OPAQUE
    assert admit(tmp_path, ["builtin", "host:1"], Registration("m", "any type", "")).path == ""


def test_paths_of_models_for_the_builtin_runtime_stay_under_the_root(tmp_path: Path) -> None:
    outside = Registration("m", "sklearn", "/etc/passwd")
    for runtimes in (["builtin"], ["builtin", "host:1"], ["host:1", "builtin"]):
        with pytest.raises(FailedPrecondition, match="does not lie under"):
            admit(tmp_path, runtimes, outside)
    assert admit(tmp_path, ["host:1"], outside) == outside
