"""Reading a request log from Parquet, in batches of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelmesh.simulate.columns import OPTIONAL, PerModel, chosen, finish
from modelmesh.simulate.trace import LoadCost, Trace, TraceError

BATCH_ROWS: Final = 1 << 18


def read_parquet(
    path: Path,
    *,
    renamed: Mapping[str, str],
    default_size_bytes: int | None,
    cost: LoadCost,
    progress: Callable[[int], None] = lambda bytes_read: None,
) -> Trace:
    """`progress` is told of so many more bytes, about. Raises TraceError with the row (from 1) and the column, and when pyarrow
    is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise TraceError(
            "Reading Parquet needs pyarrow: pip install 'pymodelmesh[simulate]', or write the log as CSV."
        ) from error
    try:
        with pq.ParquetFile(path) as file:
            found = chosen(file.schema_arrow.names, renamed)
            _check_types(pa, file.schema_arrow, found)
            reader = _Reader(pa, found)
            bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(BATCH_ROWS, columns=list(found.values())):
                reader.take(batch)
                progress(round(batch.num_rows * bytes_per_row))
    except pa.ArrowException as error:
        raise TraceError(f"It cannot be read as Parquet: {error}.") from error
    return reader.finish(default_size_bytes, cost)


def _check_types(pa: Any, schema: Any, found: Mapping[str, str]) -> None:
    for ours, theirs in found.items():
        kind = schema.field(theirs).type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if ours == "model":
            right, wanted = pa.types.is_string(plain) or pa.types.is_large_string(plain), "text"
        elif ours == "time":
            right, wanted = number or pa.types.is_timestamp(kind), "seconds or a timestamp"
        else:
            right, wanted = number, "a number"
        if not right:
            raise TraceError(f"Column {theirs} holds {kind}, not {wanted}.")


class _Reader:
    def __init__(self, pa: Any, found: Mapping[str, str]) -> None:
        self._pa = pa
        self._found = found
        self._numbers: dict[str, int] = {}
        self._told = PerModel()
        self._at_s: list[NDArray[np.float64]] = []
        self._model: list[NDArray[np.int32]] = []
        self._rows = 0

    def take(self, batch: Any) -> None:
        at_s = self._numbers_of(batch, "time", empty_allowed=False)
        column = batch.column(self._found["model"])
        if not self._pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        self._refuse(np.asarray(column.is_null()), "model", "is empty: every request names its model")
        local = []
        for name in column.dictionary.to_pylist():
            local.append(self._numbers.setdefault(name, len(self._numbers)))
        self._told.grow(len(self._numbers))
        model = np.array(local, np.int32)[column.indices.to_numpy(zero_copy_only=False)]
        for ours in OPTIONAL:
            if ours in self._found:
                amounts = self._numbers_of(batch, ours, empty_allowed=True)
                self._refuse(amounts < 0, ours, "is negative")
                self._told.add_all(ours, model, amounts)
        self._at_s.append(at_s)
        self._model.append(model)
        self._rows += batch.num_rows

    def finish(self, default_size_bytes: int | None, cost: LoadCost) -> Trace:
        if not self._at_s:
            raise TraceError("There are no requests in it.")
        at_s, model = np.concatenate(self._at_s), np.concatenate(self._model)
        return finish(at_s, model, list(self._numbers), self._told, default_size_bytes, cost)

    def _numbers_of(self, batch: Any, ours: str, *, empty_allowed: bool) -> NDArray[np.float64]:
        """A column as numbers; times in seconds. NaN where it is empty, which is refused unless allowed."""
        pa, column = self._pa, batch.column(self._found[ours])
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us")).cast(pa.int64())
            values = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64) / 1e6
        else:
            values = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
        self._refuse(np.isinf(values), ours, "is not finite")
        if not empty_allowed:
            self._refuse(np.isnan(values), ours, "is empty")
        return values

    def _refuse(self, wrong: NDArray[np.bool_], ours: str, what: str) -> None:
        if wrong.any():
            row = self._rows + int(np.flatnonzero(wrong)[0]) + 1
            raise TraceError(f"Row {row}, column {self._found[ours]} {what}.")
