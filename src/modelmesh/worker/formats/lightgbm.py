"""LightGBM models as text, from a Booster or its scikit-learn wrappers. Output name of MLServer's runtime: `predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmesh.errors import Code, LoadFailed
from modelmesh.worker.formats import names
from modelmesh.worker.formats.protocol import Claim, InputSpec, OutputSpec, Parameters, SizeHints

if TYPE_CHECKING:
    from modelmesh.dataplane.model_server import Array


class LightGBMFormat:
    """The model type `lightgbm`."""

    name = "lightgbm"
    extra = "lightgbm"
    modules: tuple[str, ...] = ("sklearn", "lightgbm")
    well_known: tuple[str, ...] = ("model.bst", "model.txt")
    extensions = (".bst", ".txt", ".lgb", ".lgbm")
    hints = SizeHints(floor_bytes=32 * 1024, per_file_byte=1.3, peak_factor=3.0)

    def claims(self, files: Sequence[str]) -> Claim:
        """`model.bst` alone is taken for XGBoost's, whose native name it is; the content decides at load."""
        claim = names.claim(files, self.well_known, self.extensions)
        alone = claim is Claim.WELL_KNOWN and "model.txt" not in files
        return Claim.ONLY_ONE if alone else claim

    def pick(self, files: Sequence[str]) -> str | None:
        return names.pick(files, self.well_known, self.extensions)

    def recognises(self, head: bytes) -> bool:
        return head.startswith((b"tree\n", b"tree\r\n"))

    def import_framework(self) -> None:
        import lightgbm

        lightgbm.register_logger(_Quiet())

    def load(self, path: Path) -> Trees:
        import lightgbm

        try:
            text = path.read_text()
            _refuse_truncated(text)
            booster = lightgbm.Booster(params={"num_threads": 1, "verbosity": -1}, model_str=text)
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            raise LoadFailed(
                f"{path} is not a whole LightGBM model ({error}).", code=Code.INVALID_ARGUMENT
            ) from error
        return Trees(booster)


def _refuse_truncated(text: str) -> None:
    """LightGBM 4.7 crashes on a model whose parameters stop in the middle. Raises ValueError."""
    if "\nend of trees" not in text:
        raise ValueError("its trees do not end")
    if "\nparameters:" in text and "\nend of parameters" not in text:
        raise ValueError("its parameters do not end")


class _Quiet:
    """LightGBM reports what it raises as well; its other remarks on loading have no reader."""

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...


class Trees:
    """A Booster."""

    platform = "lightgbm_text"
    row_wise = True

    def __init__(self, booster: Any) -> None:
        self._booster = booster
        self._columns: list[str] = booster.feature_name()
        columns = int(booster.num_model_per_iteration())
        self.inputs = (InputSpec("", "", (-1, int(booster.num_feature()))),)
        self.outputs = (OutputSpec("predict", "FP64", (-1, columns), True),)

    def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], parameters: Parameters
    ) -> Mapping[str, Array]:
        import lightgbm

        from modelmesh.worker.formats.tensors import column, matrix

        try:
            answer = self._booster.predict(matrix(inputs, self._columns), num_threads=1)
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(str(error)) from error
        return {"predict": column(answer)}

    def owned(self) -> object:
        return self._booster
