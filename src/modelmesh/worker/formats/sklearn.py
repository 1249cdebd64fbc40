"""scikit-learn estimators and pipelines, saved by joblib or pickle.

Loading a pickle runs code of its author: that the path is trusted is the caller's duty. Output names are those of
MLServer's runtime: `predict` unless the request asks for `predict_proba`, `transform` or `decision_function`.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmesh.errors import Code, LoadFailed
from modelmesh.worker.formats import names
from modelmesh.worker.formats.protocol import Claim, InputSpec, OutputSpec, Parameters, SizeHints

if TYPE_CHECKING:
    from modelmesh.dataplane.model_server import Array

METHODS = ("predict", "predict_proba", "transform", "decision_function")
COMPRESSED = (
    b"\x78\x01",
    b"\x78\x5e",
    b"\x78\x9c",
    b"\x78\xda",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x5d\x00",
    b"\x04\x22\x4d\x18",
)
"""How joblib's compressed files begin: zlib, gzip, bz2, xz, lzma, lz4."""


class SKLearnFormat:
    """The model type `sklearn`."""

    name = "sklearn"
    extra = "sklearn"
    modules: tuple[str, ...] = ("sklearn",)
    well_known: tuple[str, ...] = ("model.joblib", "model.pickle", "model.pkl")
    extensions = (".joblib", ".pickle", ".pkl")
    hints = SizeHints(floor_bytes=4 * 1024, per_file_byte=1.1, peak_factor=2.0)

    def claims(self, files: Sequence[str]) -> Claim:
        return names.claim(files, self.well_known, self.extensions)

    def pick(self, files: Sequence[str]) -> str | None:
        return names.pick(files, self.well_known, self.extensions)

    def recognises(self, head: bytes) -> bool:
        return (head[:1] == b"\x80" and head[1:2] <= b"\x05") or head.startswith(COMPRESSED)

    def import_framework(self) -> None:
        """Besides the package itself, the modules most pickles name, so that their memory is never a model's."""
        import joblib
        import sklearn.exceptions

        for module in ("compose", "ensemble", "linear_model", "pipeline", "preprocessing", "svm", "tree"):
            importlib.import_module(f"sklearn.{module}")
        del joblib
        warnings.filterwarnings(
            "ignore", message=".*does not have valid feature names.*", category=UserWarning
        )
        warnings.simplefilter("always", sklearn.exceptions.InconsistentVersionWarning)
        _Versions.listen()

    def load(self, path: Path) -> Estimator:
        import joblib

        _Versions.begin()
        try:
            estimator = joblib.load(path)
        except ModuleNotFoundError as error:
            raise LoadFailed(
                f"{path} needs the Python module {error.name!r}, which is not installed in the server's environment.",
                code=Code.FAILED_PRECONDITION,
            ) from error
        except MemoryError:
            raise
        except Exception as error:
            raise LoadFailed(_unreadable(path, error), code=Code.INVALID_ARGUMENT) from error
        finally:
            newer = _Versions.end()
        if newer:
            raise LoadFailed(
                f"{path} was saved by scikit-learn {newer}, newer than the installed {_installed()}: "
                "upgrade scikit-learn here, or save the model with this version.",
                code=Code.FAILED_PRECONDITION,
            )
        if not any(callable(getattr(estimator, method, None)) for method in METHODS):
            raise LoadFailed(
                f"{path} holds a {type(estimator).__name__}, which has none of the methods {', '.join(METHODS)}.",
                code=Code.INVALID_ARGUMENT,
            )
        return Estimator(estimator)


class Estimator:
    """A fitted estimator with the metadata it tells of itself."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        parts = list(_parts(estimator))
        for part in parts:
            if getattr(part, "n_jobs", None) is not None:
                part.n_jobs = None
        self._columns = _column_names(estimator)
        self._wants_frame = self._columns is not None and any(
            hasattr(part, "transformers_") for part in parts
        )
        self._wants_text = not hasattr(estimator, "n_features_in_") and any(
            hasattr(part, "vocabulary_") for part in parts
        )
        self._methods = [method for method in METHODS if callable(getattr(estimator, method, None))]
        self.platform = f"sklearn_{type(estimator).__name__.lower()}"
        self.inputs = self._describe_inputs(parts)
        self.outputs = () if _gives_frames(estimator) else self._describe_outputs()
        self.row_wise = all(_row_wise(part) for part in parts)

    def _describe_inputs(self, parts: Sequence[Any]) -> tuple[InputSpec, ...]:
        if self._wants_frame and self._columns is not None:
            texts = {column for part in parts for column in _text_columns(part)}
            return tuple(
                InputSpec(column, "BYTES" if column in texts else "", ()) for column in self._columns
            )
        if self._wants_text:
            return (InputSpec("", "BYTES", ()),)
        features = getattr(self._estimator, "n_features_in_", None)
        if features is None:
            return (InputSpec("", "", ()),)
        datatype = "BYTES" if any(_has_text_categories(part) for part in parts) else ""
        return (InputSpec("", datatype, (-1, int(features))),)

    def _describe_outputs(self) -> tuple[OutputSpec, ...]:
        return tuple(
            OutputSpec(method, *_describe(self._estimator, method), method == self._methods[0])
            for method in self._methods
        )

    def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], parameters: Parameters
    ) -> Mapping[str, Array]:
        from modelmesh.worker.formats.tensors import results

        features = self._features(inputs)
        methods = [name for name in outputs if name in self._methods] or self._methods[:1]
        found = [results(method, getattr(self._estimator, method)(features)) for method in methods]
        return {name: array for result in found for name, array in result.items()}

    def owned(self) -> object:
        return self._estimator

    def _features(self, inputs: Mapping[str, Array]) -> Any:
        from modelmesh.worker.formats.tensors import matrix

        if self._wants_frame and self._columns is not None:
            return _frame(inputs, self._columns)
        features = matrix(inputs, self._columns)
        return features.ravel() if self._wants_text and features.size == len(features) else features


class _Versions:
    """Which newer scikit-learn a pickle was saved by, heard from the warnings of the thread that loads it."""

    _heard = threading.local()

    @classmethod
    def listen(cls) -> None:
        """Hear the warnings of all loads from now on; others go where they went."""
        show = warnings.showwarning
        if getattr(show, "hears_versions", False):
            return

        def hear(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if category.__name__ != "InconsistentVersionWarning":
                show(message, category, *rest, **named)
            elif (versions := getattr(cls._heard, "versions", None)) is not None:
                versions.append(str(getattr(message, "original_sklearn_version", "")))

        hear.hears_versions = True  # type: ignore[attr-defined]
        warnings.showwarning = hear

    @classmethod
    def begin(cls) -> None:
        cls._heard.versions = []

    @classmethod
    def end(cls) -> str:
        """The newest version newer than the installed one, by major and minor; empty when there is none."""
        versions, cls._heard.versions = cls._heard.versions, None
        newer = [version for version in versions if _release(version) > _release(_installed())]
        return max(newer, key=_release, default="")


def _release(version: str) -> tuple[int, ...]:
    numbers = version.split(".")[:2]
    return tuple(int(number) for number in numbers) if all(number.isdigit() for number in numbers) else (0, 0)


def _installed() -> str:
    import sklearn

    return str(sklearn.__version__)


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path} is not a whole pickle that can be read here ({type(error).__name__}: {error}); it may be truncated, "
        f"or saved by another version of its libraries (scikit-learn here is {_installed()})."
    )


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator and everything it is composed of: steps, transformers, members, the estimator it wraps."""
    yield estimator
    for attribute in ("steps", "transformers_", "transformer_list"):
        for member in _listed(getattr(estimator, attribute, None)):
            yield from _parts(member)
    for attribute in ("best_estimator_", "estimator_", "base_estimator_", "final_estimator_", "regressor_"):
        wrapped = getattr(estimator, attribute, None)
        if wrapped is not None and hasattr(wrapped, "get_params"):
            yield from _parts(wrapped)


def _listed(members: Any) -> Iterator[Any]:
    if isinstance(members, list | tuple):
        for member in members:
            part = member[1] if isinstance(member, tuple) and len(member) > 1 else member
            if hasattr(part, "get_params") and not isinstance(part, type):
                yield part


def _gives_frames(estimator: Any) -> bool:
    """Whether `transform` was told to return data frames (`set_output`): its outputs are then columns, unknown before."""
    config = getattr(list(_parts(estimator))[-1], "_sklearn_output_config", {})
    return not hasattr(estimator, "predict") and config.get("transform", "default") != "default"


def _text_columns(transformer: Any) -> Iterator[str]:
    """The columns a ColumnTransformer gives to parts that were fitted on text."""
    for _, part, columns in getattr(transformer, "transformers_", ()):
        if hasattr(part, "get_params") and any(
            _has_text_categories(inner) or hasattr(inner, "vocabulary_") for inner in _parts(part)
        ):
            yield from (str(column) for column in ([columns] if isinstance(columns, str) else columns))


def _has_text_categories(part: Any) -> bool:
    return any(categories.dtype.kind in "OUS" for categories in getattr(part, "categories_", ()))


def _row_wise(part: Any) -> bool:
    """Whether a part treats rows one by one: those of the known libraries do, but for a user's own function."""
    library = type(part).__module__.partition(".")[0]
    if library == "sklearn":
        return not (type(part).__name__ == "FunctionTransformer" and part.func is not None)
    return library in ("xgboost", "lightgbm")


def _column_names(estimator: Any) -> list[str] | None:
    columns = getattr(estimator, "feature_names_in_", None)
    return None if columns is None else [str(column) for column in columns]


def _describe(estimator: Any, method: str) -> tuple[str, tuple[int, ...]]:
    """Datatype and shape of what a method returns; empty and −1 where the estimator does not tell."""
    import numpy as np

    from modelmesh.worker.formats.tensors import datatype_of

    classes = getattr(estimator, "classes_", None)
    one_output = isinstance(classes, np.ndarray) and classes.ndim == 1
    if method == "predict":
        targets = int(getattr(estimator, "n_outputs_", 1) or 1)
        if isinstance(classes, np.ndarray):
            return datatype_of(classes.dtype), (-1, targets)
        return "FP64", (-1, targets)
    if method == "predict_proba":
        return "FP64", (-1, len(classes) if one_output and classes is not None else -1)
    if method == "decision_function":
        binary = one_output and classes is not None and len(classes) == 2
        return "FP64", (-1, 1) if binary else (-1, -1)
    return "FP64", (-1, -1)


def _frame(inputs: Mapping[str, Array], columns: Sequence[str]) -> Any:
    """A data frame for models that select columns by name. Raises InvalidInput, LoadFailed."""
    from modelmesh.worker.formats.tensors import refuse_other_columns, texts

    refuse_other_columns(inputs, columns)
    try:
        import pandas as pd
    except ImportError as error:
        raise LoadFailed(
            "This model selects its columns by name and needs pandas: pip install pandas.",
            code=Code.FAILED_PRECONDITION,
        ) from error
    return pd.DataFrame({column: texts(inputs[column]).reshape(-1) for column in columns})
