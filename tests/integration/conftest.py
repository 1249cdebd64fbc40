"""Models of the integration tests."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from modelmesh.worker.formats.table import formats

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("iris") / "model.joblib"
    estimator = LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True))
    joblib.dump(estimator, path)
    return path, estimator


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Saves models of the format in `plugin`, which is installed for the time of the test, in workers by PYTHONPATH."""
    installed = tmp_path / "strange-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(
        "[modelmesh.formats]\nstrange = strange_models:StrangeFormat\n"
    )
    for folder in (PLUGIN, tmp_path):
        monkeypatch.syspath_prepend(str(folder))
    before = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(PLUGIN), *before]))
    formats.cache_clear()

    def save(name: str, **how: Any) -> Path:
        from strange_models import Strange  # type: ignore[import-not-found]

        path = tmp_path / f"{name}.strange"
        path.write_bytes(pickle.dumps(Strange(**how)))
        return path

    yield save
    formats.cache_clear()
