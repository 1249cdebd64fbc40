"""Every model format keeps the same promises: the same suite runs over models of each."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import onnx
import onnx.helper as oh
import pytest
import xgboost
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from modelmesh.errors import Code, InvalidInput, LoadFailed
from modelmesh.worker import memory
from modelmesh.worker.artefact import read_artefact
from modelmesh.worker.formats.protocol import LoadedModel
from modelmesh.worker.formats.table import formats, identify

FEATURES, LABELS = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"], dtype=object)[LABELS]
BINARY = (LABELS == 2).astype(int)


@dataclass(frozen=True)
class Case:
    """A model on disk and what the same model answers in this process. `outputs` maps an output name to its answer."""

    type: str
    file: str
    save: Callable[[Path], Any]
    outputs: dict[str, Callable[[Any, Any], Any]]
    features: Any = field(default_factory=lambda: FEATURES)
    input_name: str = "anything"
    row_wise: bool = True


def _estimator(
    estimator: Any, target: Any = LABELS, save: Callable[..., Any] = joblib.dump
) -> Callable[[Path], Any]:
    def fit_and_save(path: Path) -> Any:
        estimator.fit(FEATURES, target)
        save(estimator, path)
        return estimator

    return fit_and_save


def _pickle(estimator: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(estimator))


def _xgb_wrapper(model: Any, target: Any) -> Callable[[Path], Any]:
    def fit_and_save(path: Path) -> Any:
        model.fit(FEATURES, target)
        model.save_model(path)
        return model

    return fit_and_save


def _xgb_booster(params: dict[str, Any], target: Any) -> Callable[[Path], Any]:
    def fit_and_save(path: Path) -> Any:
        booster = xgboost.train({"nthread": 1, **params}, xgboost.DMatrix(FEATURES, target), 5)
        booster.save_model(path)
        return booster

    return fit_and_save


def _lgb_booster(params: dict[str, Any], target: Any) -> Callable[[Path], Any]:
    def fit_and_save(path: Path) -> Any:
        settings = {"verbosity": -1, "num_threads": 1, **params}
        booster = lightgbm.train(settings, lightgbm.Dataset(FEATURES, target), 5)
        booster.save_model(path)
        return booster

    return fit_and_save


def _graph(path: Path) -> Any:
    """logits = x·W + b, labels = argmax, with a symbolic first dimension."""
    rng = np.random.default_rng(7)
    weights, bias = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    nodes = [
        oh.make_node("Gemm", ["x", "w", "b"], ["logits"]),
        oh.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    graph = oh.make_graph(
        nodes,
        "linear",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [
            oh.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n"]),
            oh.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 3]),
        ],
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return lambda x: x @ weights + bias


XGB = {"n_estimators": 5, "n_jobs": 1, "max_depth": 3}
CASES = {
    "sklearn joblib": Case(
        "sklearn",
        "model.joblib",
        _estimator(LogisticRegression(max_iter=500)),
        {
            "predict": lambda m, x: m.predict(x),
            "predict_proba": lambda m, x: m.predict_proba(x),
            "decision_function": lambda m, x: m.decision_function(x),
        },
    ),
    "sklearn pickle, text labels": Case(
        "sklearn", "model.pkl", _estimator(SVC(), NAMES, _pickle), {"predict": lambda m, x: m.predict(x)}
    ),
    "sklearn pipeline": Case(
        "sklearn",
        "model.pickle",
        _estimator(
            make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0, n_jobs=2)), save=_pickle
        ),
        {"predict": lambda m, x: m.predict(x), "predict_proba": lambda m, x: m.predict_proba(x)},
    ),
    "sklearn regression": Case(
        "sklearn", "any-name.joblib", _estimator(LinearRegression()), {"predict": lambda m, x: m.predict(x)}
    ),
    "sklearn transformer": Case(
        "sklearn", "model.joblib", _estimator(StandardScaler()), {"transform": lambda m, x: m.transform(x)}
    ),
    "sklearn with a function of the user": Case(
        "sklearn",
        "model.joblib",
        _estimator(make_pipeline(FunctionTransformer(np.log1p), LinearRegression())),
        {"predict": lambda m, x: m.predict(x)},
        row_wise=False,
    ),
    "xgboost classifier, json": Case(
        "xgboost",
        "model.json",
        _xgb_wrapper(xgboost.XGBClassifier(**XGB), LABELS),
        {"predict": lambda m, x: m.predict(x), "predict_proba": lambda m, x: m.predict_proba(x)},
    ),
    "xgboost binary classifier, ubj": Case(
        "xgboost",
        "model.ubj",
        _xgb_wrapper(xgboost.XGBClassifier(**XGB), BINARY),
        {"predict": lambda m, x: m.predict(x), "predict_proba": lambda m, x: m.predict_proba(x)},
    ),
    "xgboost regressor": Case(
        "xgboost",
        "model.ubj",
        _xgb_wrapper(xgboost.XGBRegressor(**XGB), FEATURES[:, 3]),
        {"predict": lambda m, x: m.predict(x)},
    ),
    "xgboost booster, bst": Case(
        "xgboost",
        "model.bst",
        _xgb_booster({"objective": "multi:softprob", "num_class": 3}, LABELS),
        {"predict": lambda m, x: m.predict(xgboost.DMatrix(x))},
    ),
    "xgboost booster, logistic": Case(
        "xgboost",
        "model.json",
        _xgb_booster({"objective": "binary:logistic"}, BINARY),
        {"predict": lambda m, x: m.predict(xgboost.DMatrix(x))},
    ),
    "xgboost linear booster": Case(
        "xgboost",
        "model.json",
        _xgb_booster({"booster": "gblinear", "objective": "reg:squarederror"}, FEATURES[:, 3]),
        {"predict": lambda m, x: m.predict(xgboost.DMatrix(x))},
    ),
    "lightgbm regression": Case(
        "lightgbm",
        "model.txt",
        _lgb_booster({"objective": "regression"}, FEATURES[:, 3]),
        {"predict": lambda m, x: m.predict(x)},
    ),
    "lightgbm multiclass, bst": Case(
        "lightgbm",
        "model.bst",
        _lgb_booster({"objective": "multiclass", "num_class": 3}, LABELS),
        {"predict": lambda m, x: m.predict(x)},
    ),
    "onnx": Case(
        "onnx",
        "model.onnx",
        _graph,
        {"label": lambda m, x: m(x).argmax(axis=1), "logits": lambda m, x: m(x)},
        features=FEATURES.astype(np.float32),
        input_name="x",
    ),
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def saved(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("model") / case.file
    return path, case.save(path)


def _load(model_type: str, path: Path) -> LoadedModel:
    format, name = identify(model_type, read_artefact(str(path)))
    format.import_framework()
    return format.load(path if path.is_file() else path / name)


def _equal(answer: Any, expected: Any) -> None:
    """One value per row is answered as a column, as MLServer does; graphs of ONNX keep the shapes they have."""
    expected = np.asarray(expected)
    if expected.ndim == 1 and answer.ndim == 2:
        expected = expected.reshape(-1, 1)
    assert answer.shape == expected.shape
    if expected.dtype.kind in "OU":
        assert answer.tolist() == expected.tolist()
    else:
        np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-9)


def test_metadata_is_the_artefacts(case: Case, saved: tuple[Path, Any]) -> None:
    model = _load(case.type, saved[0])
    assert model.platform.startswith(case.type)
    assert model.row_wise is case.row_wise
    (only,) = model.inputs
    assert only.shape in ((-1, 4), ())
    assert only.name in ("", case.input_name)
    names = [output.name for output in model.outputs]
    assert set(case.outputs) <= set(names)
    assert any(output.default for output in model.outputs)
    for output in model.outputs:
        if output.name in case.outputs:
            answer = model.infer({case.input_name: case.features}, [output.name], {})[output.name]
            assert len(output.shape) == answer.ndim
            assert all(told in (-1, length) for told, length in zip(output.shape, answer.shape, strict=True))


def test_answers_are_those_of_the_model_in_process(case: Case, saved: tuple[Path, Any]) -> None:
    path, original = saved
    model = _load(case.type, path)
    asked = model.infer({case.input_name: case.features.copy()}, list(case.outputs), {})
    for name, answer in case.outputs.items():
        _equal(asked[name], answer(original, case.features))
    by_default = model.infer({case.input_name: case.features.copy()}, [], {})
    assert set(by_default) == {output.name for output in model.outputs if output.default}


def test_a_batch_answers_as_its_rows_do(case: Case, saved: tuple[Path, Any]) -> None:
    model = _load(case.type, saved[0])
    rows = case.features[::15]
    for name in case.outputs:
        batch = model.infer({case.input_name: rows.copy()}, [name], {})[name]
        single = [model.infer({case.input_name: row[None, :].copy()}, [name], {})[name] for row in rows]
        _equal(np.concatenate(single), batch)


def test_wrong_input_is_the_callers_fault(case: Case, saved: tuple[Path, Any]) -> None:
    if case.type == "lightgbm":
        match: type[Exception] | tuple[type[Exception], ...] = ValueError
    else:
        match = (ValueError, TypeError, InvalidInput)
    model = _load(case.type, saved[0])
    with pytest.raises(match):
        model.infer({case.input_name: np.ones((2, 9), dtype=case.features.dtype)}, [], {})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.97])
def test_a_truncated_file_is_refused_for_good(
    case: Case, saved: tuple[Path, Any], share: float, tmp_path: Path
) -> None:
    whole = saved[0].read_bytes()
    broken = tmp_path / case.file
    broken.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(LoadFailed) as failure:
        _load(case.type, broken)
    assert failure.value.permanent
    assert str(broken) in failure.value.message


def test_foreign_content_is_refused_for_good(case: Case, tmp_path: Path) -> None:
    for content in (
        b"hello, this is no model\n" * 50,
        bytes(range(256)) * 20,
        b"\x80\x04not a pickle",
        b'{"a": 1}',
    ):
        foreign = tmp_path / case.file
        foreign.write_bytes(content)
        with pytest.raises(LoadFailed) as failure:
            _load(case.type, foreign)
        assert failure.value.permanent


def test_nothing_is_left_of_a_freed_model(case: Case, saved: tuple[Path, Any]) -> None:
    model = _load(case.type, saved[0])
    model.infer({case.input_name: case.features}, [], {})
    watch = weakref.ref(model.owned())
    del model
    assert watch() is None, "the model outlives its last reference"
    gc.collect()
    before_bytes = memory.heap_bytes()
    models = [_load(case.type, saved[0]) for _ in range(30)]
    held_bytes = memory.heap_bytes() - before_bytes
    models.clear()
    kept_bytes = memory.heap_bytes() - before_bytes
    assert kept_bytes < max(0.1 * held_bytes, 64 * 1024)


def test_content_decides_between_formats_of_the_same_name(tmp_path: Path) -> None:
    CASES["lightgbm multiclass, bst"].save(tmp_path / "model.bst")
    format, name = identify("xgboost", read_artefact(str(tmp_path)))
    assert (format.name, name) == ("lightgbm", "model.bst")
    CASES["xgboost booster, bst"].save(tmp_path / "model.bst")
    assert identify("lightgbm", read_artefact(str(tmp_path)))[0].name == "xgboost"


def test_a_model_of_another_format_is_named(tmp_path: Path) -> None:
    _graph(tmp_path / "model.joblib")
    with pytest.raises(LoadFailed, match="looks like onnx") as failure:
        identify("sklearn", read_artefact(str(tmp_path)))
    assert failure.value.code is Code.INVALID_ARGUMENT


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from modelmesh.worker.formats.table import missing_extra

    for format in formats().values():
        failure = missing_extra(format, ImportError("No module named 'x'"))
        assert f'pip install "pymodelmesh[{format.extra}]"' in failure.message
        assert failure.code is Code.FAILED_PRECONDITION


def test_a_pickle_of_a_newer_sklearn_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sklearn
    import sklearn.base

    monkeypatch.setattr(sklearn.base, "__version__", "99.1.0")
    joblib.dump(LinearRegression().fit(FEATURES, LABELS), tmp_path / "model.joblib")
    monkeypatch.undo()
    with pytest.raises(LoadFailed, match=r"scikit-learn 99\.1\.0, newer than the installed") as failure:
        _load("sklearn", tmp_path)
    assert failure.value.code is Code.FAILED_PRECONDITION


def test_a_pickle_of_an_older_sklearn_still_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.base

    monkeypatch.setattr(sklearn.base, "__version__", "1.0.2")
    joblib.dump(LinearRegression().fit(FEATURES, LABELS), tmp_path / "model.joblib")
    monkeypatch.undo()
    assert _load("sklearn", tmp_path).outputs[0].name == "predict"


def test_a_pickle_that_needs_an_absent_module_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04cno_such_library\nThing\n.")
    with pytest.raises(LoadFailed, match="'no_such_library'") as failure:
        _load("sklearn", tmp_path)
    assert failure.value.code is Code.FAILED_PRECONDITION


def test_a_pickle_without_a_model_is_refused(tmp_path: Path) -> None:
    joblib.dump({"coefficients": [1, 2]}, tmp_path / "model.joblib")
    with pytest.raises(LoadFailed, match="holds a dict") as failure:
        _load("sklearn", tmp_path)
    assert failure.value.code is Code.INVALID_ARGUMENT


def test_text_models_take_bytes(tmp_path: Path) -> None:
    words = ["good fine great", "bad awful", "great good", "awful bad worst"]
    original = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(words, ["yes", "no", "yes", "no"])
    joblib.dump(original, tmp_path / "model.joblib")
    model = _load("sklearn", tmp_path)
    assert model.inputs[0].datatype == "BYTES"
    column = np.array([word.encode() for word in words], dtype=object)
    for shaped in (column, column.reshape(-1, 1)):
        assert model.infer({"text": shaped}, [], {})["predict"].tolist() == [["yes"], ["no"], ["yes"], ["no"]]
    with pytest.raises(InvalidInput, match="UTF-8"):
        model.infer({"text": np.array([b"\xff\xfe"], dtype=object)}, [], {})


def test_columns_by_name_are_put_in_the_models_order(tmp_path: Path) -> None:
    original = LogisticRegression(max_iter=500).fit(FEATURES, LABELS)
    original.feature_names_in_ = np.array(["a", "b", "c", "d"], dtype=object)
    joblib.dump(original, tmp_path / "model.joblib")
    model = _load("sklearn", tmp_path)
    columns = {name: FEATURES[:, place] for place, name in enumerate("abcd")}
    shuffled = {name: columns[name] for name in "dbca"}
    np.testing.assert_array_equal(
        model.infer(shuffled, [], {})["predict"].ravel(), original.predict(FEATURES)
    )
    with pytest.raises(InvalidInput, match="missing: d"):
        model.infer({name: columns[name] for name in "abc"}, [], {})


def test_external_data_of_onnx_lies_beside_it(tmp_path: Path) -> None:
    plain = tmp_path / "plain.onnx"
    expected = _graph(plain)
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save_model(
        onnx.load(plain),
        folder / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert sorted(read_artefact(str(folder)).names) == ["model.onnx", "weights.bin"]
    model = _load("onnx", folder)
    x = FEATURES.astype(np.float32)
    np.testing.assert_allclose(model.infer({"x": x}, ["logits"], {})["logits"], expected(x), rtol=1e-6)
    (folder / "weights.bin").unlink()
    with pytest.raises(LoadFailed):
        _load("onnx", folder)


def test_a_fixed_first_dimension_is_not_batched(tmp_path: Path) -> None:
    graph = oh.make_graph(
        [oh.make_node("Identity", ["x"], ["y"])],
        "fixed",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "model.onnx")
    loaded = _load("onnx", tmp_path)
    assert loaded.row_wise is False
    assert loaded.inputs[0].shape == (1, 4)
