"""XGBoost models in JSON or UBJ, from a Booster or its scikit-learn wrappers.

A Booster is used for both: a wrapper costs more per call and per model. What a model was decides its outputs as it
does in MLServer's runtime: a classifier gives labels (`predict`) and, on request, `predict_proba`; all else gives what
the objective gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelmesh.errors import Code, LoadFailed
from modelmesh.worker.formats import names
from modelmesh.worker.formats.protocol import Claim, InputSpec, OutputSpec, Parameters, SizeHints

if TYPE_CHECKING:
    from modelmesh.dataplane.model_server import Array

_JSON: Final = re.compile(rb'\s*\{\s*("version"\s*:\s*\[[\d\s,]*\]\s*,\s*)?"learner"\s*:\s*\{')
_UBJ: Final = re.compile(rb"\{([iU]|I\0|l\0{3}|L\0{7})\x07learner\{")


class XGBoostFormat:
    """The model type `xgboost`."""

    name = "xgboost"
    extra = "xgboost"
    modules: tuple[str, ...] = ("sklearn", "xgboost")
    well_known: tuple[str, ...] = ("model.bst", "model.json", "model.ubj")
    extensions = (".bst", ".json", ".ubj", ".xgb", ".bin")
    hints = SizeHints(floor_bytes=16 * 1024, per_file_byte=1.3, peak_factor=4.0)

    def claims(self, files: Sequence[str]) -> Claim:
        return names.claim(files, self.well_known, self.extensions)

    def pick(self, files: Sequence[str]) -> str | None:
        return names.pick(files, self.well_known, self.extensions)

    def recognises(self, head: bytes) -> bool:
        """JSON `{"learner": {…`, perhaps with the version first, or the same as UBJ, where a length precedes the key."""
        return _JSON.match(head) is not None or _UBJ.match(head) is not None

    def import_framework(self) -> None:
        import xgboost

        xgboost.set_config(verbosity=0)

    def load(self, path: Path) -> Trees:
        import xgboost

        try:
            _refuse_truncated(path)
            booster = xgboost.Booster({"nthread": 1})
            booster.load_model(path)
            return Trees(booster)
        except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
            raise LoadFailed(
                f"{path} is not a whole XGBoost model ({_first_line(error)}).", code=Code.INVALID_ARGUMENT
            ) from error


class Trees:
    """A Booster, asked as its wrapper would be."""

    row_wise = True

    def __init__(self, booster: Any) -> None:
        config = json.loads(booster.save_config())["learner"]
        self._booster = booster
        self._classifier = _kind(booster) == "classifier"
        self._in_place = config["gradient_booster"]["name"] != "gblinear"
        self._features = int(booster.num_features())
        self._columns: list[str] | None = booster.feature_names
        best = booster.attr("best_iteration")
        self._iterations = (0, int(best) + 1) if best is not None else (0, 0)
        self._objective = str(config["objective"]["name"])
        self._classes = int(config["learner_model_param"]["num_class"])
        targets = int(config["learner_model_param"].get("num_target", "1"))
        self.platform = "xgboost_json"
        self.inputs = (InputSpec("", "", (-1, self._features)),)
        self.outputs = _outputs(self._classifier, self._classes, targets, self._objective)

    def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], parameters: Parameters
    ) -> Mapping[str, Array]:
        from modelmesh.worker.formats.tensors import column, matrix

        features = matrix(inputs, self._columns)
        raw = self._predict(features)
        return {name: column(self._answer(name, raw, features)) for name in outputs or ("predict",)}

    def _answer(self, name: str, raw: Any, features: Any) -> Any:
        if not self._classifier:
            return raw
        if name == "predict":
            return _labels(raw, self._objective, self._classes)
        if self._objective == "multi:softmax":
            return _softmax(self._predict(features, margin=True))
        return _probabilities(raw)

    def owned(self) -> object:
        return self._booster

    def _predict(self, features: Any, *, margin: bool = False) -> Any:
        import xgboost

        try:
            if self._in_place:
                return self._booster.inplace_predict(
                    features,
                    iteration_range=self._iterations,
                    predict_type="margin" if margin else "value",
                    validate_features=True,
                )
            data = xgboost.DMatrix(features, nthread=1)
            return self._booster.predict(
                data, iteration_range=self._iterations, output_margin=margin, validate_features=False
            )
        except xgboost.core.XGBoostError as error:
            raise ValueError(_first_line(error)) from error


def _refuse_truncated(path: Path) -> None:
    """Both encodings are one object and end with its brace. XGBoost 3.2 crashes or hangs on a truncated UBJ file (seen at
    about 7 % of all lengths, never at one that ends with a brace). Raises ValueError."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 64))
        if not stream.read().rstrip().endswith(b"}"):
            raise ValueError("it ends in the middle")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _kind(booster: Any) -> str:
    """What the scikit-learn wrapper noted when it saved the model: classifier, regressor or ranker; else empty."""
    noted = booster.attr("scikit_learn")
    return str(json.loads(noted).get("_estimator_type", "")) if noted else ""


def _outputs(classifier: bool, classes: int, targets: int, objective: str) -> tuple[OutputSpec, ...]:
    columns = max(classes if objective != "multi:softmax" else 1, targets)
    if not classifier:
        return (OutputSpec("predict", "FP32", (-1, columns), True),)
    return (
        OutputSpec("predict", "INT64", (-1, targets), True),
        OutputSpec("predict_proba", "FP32", (-1, max(classes, targets, 2)), False),
    )


def _labels(raw: Any, objective: str, classes: int) -> Any:
    """As `XGBClassifier.predict`: the class of highest probability; independent labels keep their columns."""
    import numpy as np

    if objective == "multi:softmax":
        return raw.astype(np.int64)
    if raw.ndim == 1 or classes <= 2:
        return (raw > 0.5).astype(np.int64)
    return raw.argmax(axis=1)


def _softmax(margins: Any) -> Any:
    import numpy as np

    powers = np.exp(margins - margins.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _probabilities(raw: Any) -> Any:
    """As `XGBClassifier.predict_proba`: two columns for a binary model."""
    import numpy as np

    return np.column_stack((1.0 - raw, raw)) if raw.ndim == 1 else raw
