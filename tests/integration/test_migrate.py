"""`modelmesh migrate` on an etcd as ModelMesh leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelmesh.cli import main as cli
from modelmesh.testing.etcd import Etcd, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

ROOT = "/team/mm/modelmesh-serving"


@dataclass(frozen=True)
class Told:
    returncode: int
    stdout: str
    stderr: str


Migrate = Callable[..., Told]


@pytest.fixture
def migrate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Migrate:
    """Run the command with these variables."""

    def run(environment: dict[str, str], *arguments: str) -> Told:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                cli.main(["migrate", *arguments])
        return Told(int(ended.value.code or 0), *capsys.readouterr())

    return run


def test_it_tells_what_will_happen(tmp_path: Path, migrate: Migrate) -> None:
    connection = tmp_path / "etcd_connection"
    models = tmp_path / "models"
    models.mkdir()
    with Etcd(tmp_path / "etcd") as etcd:
        for key, value in {
            "registry/iris": {"type": "sklearn", "mPath": f"{models}/iris", "instanceIds": {"ab": 1}},
            "registry/deep": {"type": "triton", "mPath": "s3/deep", "failedIn": {"ab": 1}},
            "vmodels/name": {"amid": "iris", "tmid": "deep"},
            "vmodels/lost": {"amid": "none", "tmid": "none"},
            "instances/ab": {"count": 1},
        }.items():
            etcd.ctl("put", f"{ROOT}/{key}", json.dumps(value))
        etcd.ctl("put", f"{ROOT}/config/log_each_invocation", "true")
        etcd.ctl("put", f"{ROOT}/registry/broken", "{")
        connection.write_text(json.dumps({"endpoints": etcd.endpoints, "root_prefix": "/team"}))
        before = etcd.ctl("get", "--prefix", "")
        variables = {
            "KV_STORE": f"etcd:{connection}",
            "MM_SERVICE_NAME": "modelmesh-serving",
            "MM_KVSTORE_PREFIX": "mm",
            "MM_SCALEUP_RPM_THRESHOLD": "2000",
            "INTERNAL_GRPC_PORT": "8085",
        }
        told = migrate(variables, "--model-root", str(models))
        assert told.returncode == 0, told.stderr
        for sentence in (
            "Registered: 2 models (",
            "does not serve triton (1 model)",
            "will not load 1 model from where they lie: deep",
            "not registered: lost.",
            "cannot be read, and are left alone: registry/broken.",
            "on their way to another model, which goes on from here: name.",
            "(1 claim) and failed to (1 failure) is ignored",
            "no effect here: log_each_invocation.",
            "MM_SCALEUP_RPM_THRESHOLD is ignored",
            "Alive: 1 instance of ModelMesh (ab).",
            f"modelmesh serve --store etcd:{connection} --service modelmesh-serving --store-prefix mm --model-root {models}",
        ):
            assert sentence in told.stdout
        as_json = json.loads(migrate(variables, "--json").stdout)
        assert (as_json["models"], as_json["vmodels_dangling"]) == (2, {"lost": "none"})
        empty = migrate({}, "--store", f"etcd:{etcd.endpoints}", "--service", "other")
        assert "Nothing is registered for other there." in empty.stdout
        assert etcd.ctl("get", "--prefix", "") == before, "nothing was changed"
    away = migrate(variables)
    assert away.returncode == 3
    assert "cannot be reached" in away.stderr


def test_it_has_to_be_told_where(migrate: Migrate) -> None:
    told = migrate({"KV_STORE": "", "MODELMESH_STORE": ""})
    assert told.returncode == 2
    assert "say where the registry is" in told.stderr
