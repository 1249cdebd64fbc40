"""Formats guessed from names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from modelmesh.runtime.detect import guess, well_known_names
from modelmesh.worker.formats.table import formats


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.joblib"], "sklearn"),
        (["model.pickle"], "sklearn"),
        (["model.pkl"], "sklearn"),
        (["iris-v3.joblib"], "sklearn"),
        (["iris.PKL"], "sklearn"),
        (["model.joblib", "README.md", "model-settings.json"], "sklearn"),
        (["model.json"], "xgboost"),
        (["model.ubj"], "xgboost"),
        (["model.bst"], "xgboost"),
        (["churn.ubj", "LICENSE", "requirements.txt"], "xgboost"),
        (["model.txt"], "lightgbm"),
        (["model.bst", "model.txt"], "lightgbm"),
        (["ranker.lgbm"], "lightgbm"),
        (["model.onnx"], "onnx"),
        (["resnet.onnx", "resnet.onnx.data"], "onnx"),
        (["model.onnx", "weights/1.bin", "weights/2.bin"], "onnx"),
        (["a.ort"], "onnx"),
        ([], None),
        (["README.md"], None),
        (["model-settings.json"], None),
        (["metadata.json"], None),
        (["requirements.txt"], None),
        (["a.joblib", "b.joblib"], None),
        (["photo.jpg"], None),
        (["sub/model.joblib"], None),
        ([".model.joblib"], None),
        (["train.py", "data.csv"], None),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else value,
)
def test_guess(files: list[str], expected: str | None) -> None:
    assert guess(files) == expected


def test_well_known_names_are_guessed_as_their_own_type() -> None:
    for model_type, names in well_known_names().items():
        for name in names:
            if name != "model.bst":
                assert guess([name]) == model_type


@pytest.mark.parametrize("name", sorted(formats()))
def test_a_format_picks_what_it_claims(name: str) -> None:
    format = formats()[name]
    for file in format.well_known:
        assert format.pick([file, "README.md"]) == file
    assert format.pick(["anything"]) == "anything", "a single file of any name, when the type is given"
    assert format.pick(["one", "two"]) is None


def test_detection_imports_no_numpy_and_no_framework() -> None:
    program = (
        "import sys; from modelmesh.runtime import builtin, detect; assert detect.guess(['model.onnx']) == 'onnx'; "
        "heavy = {'numpy', 'sklearn', 'xgboost', 'lightgbm', 'onnxruntime', 'joblib', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
