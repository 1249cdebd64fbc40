"""Formats guessed from names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modelmesh.runtime.detect import guess, why_no_model
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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"Remember the milk.\n", "it does not begin like a model of type lightgbm"),
        ("model.txt", b"tree\nversion=v4\n", ""),
        ("model.bst", b"tree\nversion=v4\n", ""),
        ("model.joblib", b"", "it is empty"),
        ("model.joblib", b"\0" * 4096, "it does not begin like a model of type sklearn"),
        ("model.joblib", b"\x80\x04\x95", ""),
        ("model.joblib", b"\x78\x9c\xab", ""),
        ("model.pkl", b"x = 1", "it does not begin like a model of type sklearn"),
        ("model.onnx", b"\x80\x04\x95", "it does not begin like a model of type onnx; it looks like sklearn"),
        ("model.onnx", b"\x08\x07\x12", ""),
        ("model.json", b'{"learner":{"attributes":{}}}', ""),
        ("model.json", b'\n{\n  "version": [2, 0, 3],\n  "learner": {', ""),
        (
            "model.json",
            b'{"name": "learner", "version": 1}',
            "it does not begin like a model of type xgboost",
        ),
        (
            "vocabulary.json",
            b'{"learner": 17, "teacher": 4}',
            "it does not begin like a model of type xgboost",
        ),
        ("tsconfig.json", b'{"version": [1, 2]}', "it does not begin like a model of type xgboost"),
        ("list.json", b"[1, 2]", "it does not begin like a model of type xgboost"),
        ("model.ubj", b"{L" + b"\0" * 7 + b"\x07learner{L", ""),
        ("model.ubj", b"{U\x07learner{", ""),
        ("model.ubj", b"{U\x04name", "it does not begin like a model of type xgboost"),
        ("archive.bin", b"PK\x03\x04", "it does not begin like a model of type xgboost"),
    ],
)
def test_the_first_bytes_tell_what_is_no_model(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    model_type = guess([name])
    assert model_type is not None
    assert why_no_model(model_type, str(tmp_path / name), (name,)) == words
    assert why_no_model(model_type, str(tmp_path), (name, "README.md")) == words.replace("it", name, 1)


def test_well_known_names_are_guessed_as_their_own_type() -> None:
    for model_type, format in formats().items():
        for name in format.well_known:
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
