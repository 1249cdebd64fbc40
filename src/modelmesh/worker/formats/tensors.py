"""Arrays in and out of models: the conversions all formats share. The wire's own are `dataplane.model_server`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelmesh.dataplane.model_server import DATATYPES, Array
from modelmesh.errors import InvalidInput


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's datatype for a dtype: text, dates and objects are BYTES, extended floats FP64."""
    known = DATATYPES.get(dtype.newbyteorder("<"))
    if known is not None:
        return known
    return "FP64" if dtype.kind == "f" else "BYTES"


def texts(array: Array) -> Array:
    """BYTES as text, other arrays as they are. Raises InvalidInput for what is not UTF-8."""
    if array.dtype != object:
        return array
    decoded = np.empty(array.size, dtype=object)
    try:
        decoded[:] = [
            element.decode() if isinstance(element, bytes) else element for element in array.ravel()
        ]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"A BYTES element is not UTF-8: {error}.") from error
    return decoded.reshape(array.shape)


def results(name: str, value: Any) -> dict[str, Array]:
    """A result by output name, as arrays the protocol can carry: an array, a sparse matrix, a list; or a data frame, one
    output per column. One value per row is a column, as `column` says."""
    if hasattr(value, "iloc") and hasattr(value, "columns"):
        columns = (results(str(column), value[column].to_numpy()) for column in value.columns)
        return {column: array for result in columns for column, array in result.items()}
    if hasattr(value, "toarray"):
        value = value.toarray()
    array = np.asarray(value)
    if array.ndim == 0:
        array = array.reshape(1)
    if array.dtype == object:
        array = _without_objects(array)
    elif array.dtype.kind in "Mm":
        array = (
            np.datetime_as_string(array).astype(object) if array.dtype.kind == "M" else array.astype(np.int64)
        )
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return {name: column(array)}


def column(array: Array) -> Array:
    """One value per row with shape (rows, 1), as MLServer's packaged runtimes answer (reference runtimes.md 5.6); arrays
    of more dimensions as they are."""
    return array.reshape(-1, 1) if array.ndim == 1 else array


def _without_objects(array: Array) -> Array:
    """Numbers in an object array as numbers; all else stays and goes out as text."""
    if any(isinstance(item, str | bytes) for item in array.ravel()):
        return array
    numbers = np.asarray(array.tolist())
    return numbers if numbers.dtype.kind in "biuf" and numbers.shape == array.shape else array


def matrix(inputs: Mapping[str, Array], columns: Sequence[str] | None) -> Array:
    """One feature array from the inputs: a single one as it is; several, one per column, side by side in the order of
    `columns` (the names the model was trained with), or as they come when it has none. Raises InvalidInput."""
    if len(inputs) == 1:
        return texts(next(iter(inputs.values())))
    order = list(inputs) if columns is None else list(columns)
    refuse_other_columns(inputs, order)
    parts = [texts(inputs[name]) for name in order]
    if len({len(part) for part in parts}) > 1:
        raise InvalidInput("The inputs have different numbers of rows.")
    return np.concatenate([part if part.ndim > 1 else part.reshape(-1, 1) for part in parts], axis=1)


def refuse_other_columns(inputs: Mapping[str, Array], columns: Sequence[str]) -> None:
    """Raises InvalidInput when the inputs are not exactly these columns."""
    absent = [name for name in columns if name not in inputs]
    foreign = [name for name in inputs if name not in columns]
    if absent or foreign:
        found = [
            f"{what}: {', '.join(names[:8])}"
            for what, names in (("missing", absent), ("unknown", foreign))
            if names
        ]
        raise InvalidInput(
            f"The inputs are not the model's columns ({'; '.join(found)}); send one input per column."
        )
