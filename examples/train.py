"""Train a small set of example models: `python -m examples.train FOLDER`.

Every model is a folder laid out as its framework's users have it, trained on a data set that ships with scikit-learn. A folder
appears whole or not at all, and one that is there is left alone, so running this again costs nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import pickle
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

SEED = 7


@dataclass(frozen=True, slots=True)
class Example:
    """One example model: the folder's name, what is inside, the modules it takes to train it, and how."""

    name: str
    about: str
    needs: tuple[str, ...]
    train: Callable[[Path], None]
    """Writes the model's files into an existing, empty folder."""


def iris_sklearn(folder: Path) -> None:
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True))
    joblib.dump(model, folder / "model.joblib")


def breast_cancer_sklearn(folder: Path) -> None:
    import joblib
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(n_estimators=50, random_state=SEED).fit(
        *load_breast_cancer(return_X_y=True)
    )
    joblib.dump(model, folder / "model.joblib")


def diabetes_sklearn(folder: Path) -> None:
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), Ridge()).fit(*load_diabetes(return_X_y=True))
    (folder / "model.pkl").write_bytes(pickle.dumps(model))


def wine_xgboost(folder: Path) -> None:
    from sklearn.datasets import load_wine
    from xgboost import XGBClassifier

    model = XGBClassifier(n_estimators=20, max_depth=3, n_jobs=1, random_state=SEED)
    model.fit(*load_wine(return_X_y=True))
    model.save_model(folder / "model.json")


def diabetes_xgboost(folder: Path) -> None:
    from sklearn.datasets import load_diabetes
    from xgboost import XGBRegressor

    model = XGBRegressor(n_estimators=40, max_depth=3, n_jobs=1, random_state=SEED)
    model.fit(*load_diabetes(return_X_y=True))
    model.save_model(folder / "model.ubj")


def diabetes_lightgbm(folder: Path) -> None:
    """Two versions: numbered sub-folders, the higher one with more trees."""
    import lightgbm
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True)
    for version, trees in (("1", 10), ("2", 60)):
        parameters = {"objective": "regression", "num_threads": 1, "seed": SEED, "verbose": -1}
        booster = lightgbm.train(parameters, lightgbm.Dataset(features, target), num_boost_round=trees)
        (folder / version).mkdir()
        booster.save_model(folder / version / "model.txt")


def breast_cancer_lightgbm(folder: Path) -> None:
    import lightgbm
    from sklearn.datasets import load_breast_cancer

    parameters = {"objective": "binary", "num_threads": 1, "seed": SEED, "verbose": -1}
    data = lightgbm.Dataset(*load_breast_cancer(return_X_y=True))
    lightgbm.train(parameters, data, num_boost_round=30).save_model(folder / "model.txt")


def digits_onnx(folder: Path) -> None:
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    network = MLPClassifier((32,), solver="lbfgs", max_iter=500, random_state=SEED)
    _write_onnx(make_pipeline(MinMaxScaler(), network).fit(*load_digits(return_X_y=True)), 64, folder)


def iris_onnx(folder: Path) -> None:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    _write_onnx(LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True)), 4, folder)


def _write_onnx(classifier: object, n_features: int, folder: Path) -> None:
    """Outputs are `label` and a plain matrix `probabilities` (no ZipMap, which no inference protocol can carry)."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    inputs = [("X", FloatTensorType([None, n_features]))]
    graph = convert_sklearn(classifier, initial_types=inputs, options={"zipmap": False})
    (folder / "model.onnx").write_bytes(graph.SerializeToString())


SKLEARN = ("sklearn", "joblib")
EXAMPLES: Sequence[Example] = (
    Example("iris-sklearn", "LogisticRegression, joblib", SKLEARN, iris_sklearn),
    Example("breast-cancer-sklearn", "RandomForestClassifier, joblib", SKLEARN, breast_cancer_sklearn),
    Example("diabetes-sklearn", "StandardScaler and Ridge, pickle", SKLEARN, diabetes_sklearn),
    Example("wine-xgboost", "XGBClassifier, JSON", (*SKLEARN, "xgboost"), wine_xgboost),
    Example("diabetes-xgboost", "XGBRegressor, UBJSON", (*SKLEARN, "xgboost"), diabetes_xgboost),
    Example("breast-cancer-lightgbm", "binary booster, text", (*SKLEARN, "lightgbm"), breast_cancer_lightgbm),
    Example("diabetes-lightgbm", "two versions, text", (*SKLEARN, "lightgbm"), diabetes_lightgbm),
    Example("iris-onnx", "LogisticRegression, ONNX", (*SKLEARN, "skl2onnx"), iris_onnx),
    Example("digits-onnx", "neural network, ONNX", (*SKLEARN, "skl2onnx"), digits_onnx),
)


def train_one(example: Example, root: Path) -> None:
    """Train into a hidden folder and rename it, so that whoever serves `root` never sees half a model."""
    partial = root / f".{example.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    example.train(partial)
    partial.rename(root / example.name)


def missing_modules(example: Example) -> list[str]:
    return [name for name in example.needs if importlib.util.find_spec(name) is None]


def train_absent(root: Path, console: Console) -> None:
    """Train what `root` does not have. An example whose framework is not installed is skipped with a sentence."""
    absent = [example for example in EXAMPLES if not (root / example.name).exists()]
    if not absent:
        return
    columns = (
        TextColumn("Training example models"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    skipped: list[str] = []
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(absent))
        for example in absent:
            progress.update(bar, description=f"{example.name}: {example.about}")
            if missing := missing_modules(example):
                skipped.append(
                    f"{example.name} was skipped: it needs {' and '.join(missing)}, not installed here."
                )
            else:
                train_one(example, root)
            progress.advance(bar)
        progress.update(bar, description=f"in {root}")
    for sentence in skipped:
        console.print(sentence)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train", description="Train the example models that are absent."
    )
    parser.add_argument("folder", type=Path, help="where the model folders go, e.g. examples/models")
    root: Path = parser.parse_args().folder
    try:
        train_absent(root, Console())
    except OSError as problem:
        print(f"The example models could not be written to {root}: {problem}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
