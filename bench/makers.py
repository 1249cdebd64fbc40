"""One maker per kind of model: writes a model of about the wanted size in memory, whose predictions are its own.

Bulk comes from what makes models large in practice: many deep trees, wide coefficient arrays, embedding tables.
Trees are grown once per process and dealt out in different hands with shifted leaf values, so a model costs
milliseconds. Arithmetic is kept well conditioned (no sums that cancel), so that a batch of other rows cannot move a
float by more than 1e-6 of itself.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

Rows = np.ndarray
KIB = 1024
N_FEATURES = 13


@dataclass(frozen=True, slots=True)
class Kind:
    """How to make, load and ask one kind of model. `size_bytes_min` and `size_bytes_max` bound what it can weigh in memory."""

    framework: str
    file_name: str
    datatype: str
    output: str
    size_bytes_min: int
    size_bytes_max: int
    make: Callable[[Path, int, np.random.Generator], None]
    predict: Callable[[Path, Rows], np.ndarray]
    """Load the written file as its framework's users do, and predict."""


@functools.cache
def _regression_data(n_rows: int) -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(11)
    features = rng.standard_normal((n_rows, N_FEATURES)).astype(np.float32)
    noise = rng.standard_normal(n_rows)
    target = 100 + 5 * features[:, 0] * features[:, 1] + 8 * np.sin(3 * features[:, 2]) + 4 * noise
    return features, target.astype(np.float32)


# --- scikit-learn --------------------------------------------------------------------------------------------------


@functools.cache
def _iris_classifier():
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True))


def make_sklearn_linear(path: Path, size_bytes: int, rng: np.random.Generator) -> None:
    import joblib

    model = _iris_classifier()
    model.coef_ = rng.normal(0, 0.2, model.coef_.shape)
    model.intercept_ = rng.standard_normal(model.intercept_.shape)
    joblib.dump(model, path)


def make_sklearn_wide(path: Path, size_bytes: int, rng: np.random.Generator) -> None:
    """Random features and a linear layer over them: two large coefficient arrays."""
    import joblib
    from sklearn.kernel_approximation import RBFSampler
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    n_wide = max(8, size_bytes // (8 * (N_FEATURES + 2)))
    sampler = RBFSampler(n_components=n_wide, random_state=int(rng.integers(2**31)))
    features, target = _regression_data(40_000)
    head = Ridge().fit(features[:50, :4], target[:50])
    head.coef_ = rng.uniform(0, 1, n_wide)
    head.intercept_ = 100.0
    head.n_features_in_ = n_wide
    joblib.dump(make_pipeline(sampler.fit(features[:2].astype(np.float64)), head), path)


@functools.cache
def _forest(n_rows: int, n_trees: int):
    from sklearn.ensemble import RandomForestRegressor

    features, target = _regression_data(40_000)
    forest = RandomForestRegressor(n_trees, max_features=4, n_jobs=1, random_state=1)
    return forest.fit(features[:n_rows], target[:n_rows]), list(forest.estimators_)


FOREST_TREE_BYTES = {300: 30 * KIB, 12_000: 1060 * KIB}


def make_sklearn_forest(path: Path, size_bytes: int, rng: np.random.Generator) -> None:
    import joblib

    n_rows = 300 if size_bytes < 1100 * KIB else 12_000
    forest, pool = _forest(n_rows, 24 if n_rows == 12_000 else 60)
    n_trees = min(len(pool), max(1, round(size_bytes / FOREST_TREE_BYTES[n_rows])))
    forest.estimators_ = [pool[index] for index in rng.choice(len(pool), n_trees, replace=False)]
    forest.n_estimators = n_trees
    forest.estimators_[0].tree_.value[:] += rng.uniform(0.01, 1)
    joblib.dump(forest, path)


def predict_sklearn(path: Path, rows: Rows) -> np.ndarray:
    import joblib

    return joblib.load(path).predict(rows)


def predict_sklearn_probabilities(path: Path, rows: Rows) -> np.ndarray:
    import joblib

    return joblib.load(path).predict_proba(rows)


# --- XGBoost -------------------------------------------------------------------------------------------------------


@functools.cache
def _boosted(depth: int, n_rows: int, n_trees: int):
    import xgboost

    features, target = _regression_data(40_000)
    parameters = {"max_depth": depth, "nthread": 1, "eta": 0.1, "seed": 1, "tree_method": "hist"}
    return xgboost.train(parameters, xgboost.DMatrix(features[:n_rows], target[:n_rows]), n_trees)


XGBOOST_TREE_BYTES = {3: 3 * KIB, 14: 190 * KIB}


def make_xgboost_regressor(path: Path, size_bytes: int, rng: np.random.Generator) -> None:
    depth = 3 if size_bytes < 500 * KIB else 14
    booster = _boosted(depth, 40_000 if depth == 14 else 2_000, 60 if depth == 14 else 200)
    n_pool = booster.num_boosted_rounds()
    n_trees = min(n_pool, max(1, round(size_bytes / XGBOOST_TREE_BYTES[depth])))
    first = int(rng.integers(0, n_pool - n_trees + 1))
    hand = booster[first : first + n_trees]
    hand.set_param({"base_score": float(rng.uniform(50, 150))})
    hand.save_model(path)


def make_xgboost_classifier(path: Path, size_bytes: int, rng: np.random.Generator) -> None:
    from sklearn.datasets import load_wine
    from xgboost import XGBClassifier

    features, target = load_wine(return_X_y=True)
    few = rng.choice(len(target), 90, replace=False)
    n_trees = max(1, min(20, size_bytes // (9 * KIB)))
    model = XGBClassifier(n_estimators=n_trees, max_depth=3, n_jobs=1, random_state=int(rng.integers(2**31)))
    model.fit(features[few], rng.permutation(3)[target[few]]).save_model(path)


def predict_xgboost_regressor(path: Path, rows: Rows) -> np.ndarray:
    from xgboost import XGBRegressor

    model = XGBRegressor(n_jobs=1)
    model.load_model(path)
    return model.predict(rows)


def predict_xgboost_classifier(path: Path, rows: Rows) -> np.ndarray:
    from xgboost import XGBClassifier

    model = XGBClassifier(n_jobs=1)
    model.load_model(path)
    return model.predict(rows)


# --- LightGBM ------------------------------------------------------------------------------------------------------


@functools.cache
def _light(leaves: int, n_rows: int, n_trees: int):
    import lightgbm

    features, target = _regression_data(40_000)
    parameters = {
        "objective": "regression",
        "num_leaves": leaves,
        "min_data_in_leaf": 2,
        "num_threads": 1,
        "seed": 1,
    }
    data = lightgbm.Dataset(features[:n_rows], target[:n_rows])
    return lightgbm.train({**parameters, "verbose": -1}, data, n_trees)


LIGHTGBM_TREE_BYTES = {15: 3 * KIB, 3000: 205 * KIB}


def make_lightgbm(path: Path, size_bytes: int, rng: np.random.Generator) -> None:
    leaves = 15 if size_bytes < 600 * KIB else 3000
    booster = _light(leaves, 20_000 if leaves == 3000 else 2_000, 100 if leaves == 3000 else 220)
    n_pool = booster.current_iteration()
    n_trees = min(n_pool, max(1, round(size_bytes / LIGHTGBM_TREE_BYTES[leaves])))
    first = int(rng.integers(0, n_pool - n_trees + 1))
    shift = rng.uniform(0.5, 1.5)
    for leaf in range(leaves):
        booster.set_leaf_output(first, leaf, booster.get_leaf_output(first, leaf) + shift)
    booster.save_model(path, start_iteration=first, num_iteration=n_trees)


def predict_lightgbm(path: Path, rows: Rows) -> np.ndarray:
    import lightgbm

    return lightgbm.Booster(model_file=path).predict(rows, num_threads=1)


# --- ONNX ----------------------------------------------------------------------------------------------------------

EMBEDDING_WIDTH = 8


def make_onnx(path: Path, size_bytes: int, rng: np.random.Generator) -> None:
    """The largest feature picks a row of an embedding table, to which a linear layer is added: any number of rows at once."""
    from onnx import TensorProto, helper, numpy_helper

    n_each = max(1, (size_bytes - 64 * KIB) // (4 * EMBEDDING_WIDTH * N_FEATURES))
    table = rng.random((N_FEATURES * n_each, EMBEDDING_WIDTH), dtype=np.float32) + np.float32(1)
    constants = {
        "table": table,
        "stride": np.array(n_each, np.int64),
        "weights": rng.random((N_FEATURES, EMBEDDING_WIDTH), dtype=np.float32),
    }
    nodes = [
        helper.make_node("ArgMax", ["x"], ["largest"], axis=1, keepdims=0),
        helper.make_node("Mul", ["largest", "stride"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["embedding"], axis=0),
        helper.make_node("Abs", ["x"], ["positive"]),
        helper.make_node("MatMul", ["positive", "weights"], ["linear"]),
        helper.make_node("Add", ["embedding", "linear"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", N_FEATURES])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", EMBEDDING_WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def predict_onnx(path: Path, rows: Rows) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["score"], {"x": rows})[0]


MIB = KIB * KIB
KINDS: dict[str, Kind] = {
    "sklearn-linear": Kind(
        "sklearn",
        "model.joblib",
        "FP64",
        "predict_proba",
        0,
        32 * KIB,
        make_sklearn_linear,
        predict_sklearn_probabilities,
    ),
    "sklearn-wide": Kind(
        "sklearn", "model.joblib", "FP64", "predict", 8 * KIB, 20 * MIB, make_sklearn_wide, predict_sklearn
    ),
    "sklearn-forest": Kind(
        "sklearn", "model.joblib", "FP64", "predict", 30 * KIB, 20 * MIB, make_sklearn_forest, predict_sklearn
    ),
    "xgboost-classifier": Kind(
        "xgboost",
        "model.json",
        "FP32",
        "predict",
        9 * KIB,
        200 * KIB,
        make_xgboost_classifier,
        predict_xgboost_classifier,
    ),
    "xgboost-regressor": Kind(
        "xgboost",
        "model.ubj",
        "FP32",
        "predict",
        16 * KIB,
        11 * MIB,
        make_xgboost_regressor,
        predict_xgboost_regressor,
    ),
    "lightgbm": Kind(
        "lightgbm", "model.txt", "FP64", "predict", 16 * KIB, 20 * MIB, make_lightgbm, predict_lightgbm
    ),
    "onnx": Kind("onnx", "model.onnx", "FP32", "score", 64 * KIB, 20 * MIB, make_onnx, predict_onnx),
}
