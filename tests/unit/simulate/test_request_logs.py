"""Reading logs: the same trace from CSV and Parquet, and sentences that name the row and the column."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelmesh.simulate.csv_log import read_csv
from modelmesh.simulate.parquet_log import read_parquet
from modelmesh.simulate.trace import LoadCost, Trace, TraceError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

COST = LoadCost(1.0, 100.0)


def from_csv(
    path: Path, text: str | bytes, renamed: Mapping[str, str] | None = None, size: int | None = 10
) -> Trace:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(path, renamed=renamed or {}, default_size_bytes=size, cost=COST)


def from_parquet(
    path: Path, columns: Mapping[str, Any], renamed: Mapping[str, str] | None = None, size: int | None = 10
) -> Trace:
    pq.write_table(pa.table(dict(columns)), path, row_group_size=2)
    return read_parquet(path, renamed=renamed or {}, default_size_bytes=size, cost=COST)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def same(one: Trace, other: Trace) -> bool:
    columns = ("at_s", "model", "size_bytes", "load_s", "service_s")
    return list(one.names) == list(other.names) and all(
        (getattr(one, name) == getattr(other, name)).all() for name in columns
    )


def test_both_formats_tell_the_same(log: Path) -> None:
    text = "time,model,size,service_s,load_s\n10,a,100,0.5,\n9,b,,0.1,7\n12.5,a,300,1.5,\n11,c,,,\n"
    rows = {
        "time": [10.0, 9.0, 12.5, 11.0],
        "model": ["a", "b", "a", "c"],
        "size": [100, None, 300, None],
        "service_s": [0.5, 0.1, 1.5, None],
        "load_s": pa.array([None, 7.0, None, None], pa.float64()),
    }
    trace = from_csv(log, text)
    assert same(trace, from_parquet(log, rows))
    assert trace.at_s.tolist() == [0.0, 1.0, 2.0, 3.5], "in order of time, from 0"
    assert [trace.names[model] for model in trace.model] == ["b", "a", "c", "a"]
    assert trace.size_bytes.tolist() == [300, 10, 10], "the largest told; else the default"
    assert trace.load_s.tolist() == [1.0 + 3.0, 7.0, 1.1], "as told, or from the bytes"
    assert trace.service_s.tolist() == [1.0, 0.1, 0.0], "the mean"
    assert trace.named_sizes == 1


def test_dates_other_names_and_gzip(log: Path) -> None:
    text = "ts,name\n2026-01-01T00:00:00Z,a\n2026-01-01 01:00:02+01:00,b\n\n2026-01-01T00:00:01.5,a\n"
    renamed = {"time": "ts", "model": "name"}
    trace = from_csv(log, text, renamed)
    assert trace.at_s.tolist() == [0.0, 1.5, 2.0] and trace.model.tolist() == [0, 0, 1]
    packed = log.with_suffix(".csv.gz")
    assert same(trace, from_csv(packed, gzip.compress(text.encode()), renamed))
    moments = np.array(
        ["2026-01-01T00:00:00", "2026-01-01T00:00:02", "2026-01-01T00:00:01.5"], "datetime64[ms]"
    )
    names = pa.array(["a", "b", "a"]).dictionary_encode()
    assert same(trace, from_parquet(log, {"ts": moments, "name": names}, renamed))


def test_progress_is_told(tmp_path: Path) -> None:
    path, told = tmp_path / "log.csv", list[int]()
    path.write_text("time,model\n" + "".join(f"{number},m{number % 9}\n" for number in range(40_000)))
    read_csv(path, renamed={}, default_size_bytes=1, cost=COST, progress=told.append)
    assert len(told) >= 3 and 0 < sum(told) <= path.stat().st_size


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "It is empty: the first line names the columns, at least time,model."),
        ("time,model\n", "There are no requests in it."),
        ("at,model\n1,a\n", "There is no column time, only at, model: say which one holds the time with --columns time=NAME."),
        ("time,model\n1,a\nsoon,b\n", "Row 3, column time: 'soon' is not a time (seconds, or ISO 8601)."),
        ("time,model\n1,a\nnan,b\n", "Row 3, column time: 'nan' is not a time (seconds, or ISO 8601)."),
        ("time,model\n1,a\n2026-01-01,b\n", "Row 3, column time: '2026-01-01' is a date, but the rows before it tell seconds."),
        ("time,model\n1,a\n2,\n", "Row 3, column model is empty: every request names its model."),
        ("time,model\n1,a\n\n2\n", "Row 4 has 1 columns and the header 2."),
        ("time,model,size\n1,a,big\n", "Row 2, column size: 'big' is not a number that is not negative."),
        ("time,model,load_s\n1,a,-1\n", "Row 2, column load_s: '-1' is not a number that is not negative."),
        (b"time,model\n1,\xff\n", "It is not text in UTF-8 (invalid start byte): is it CSV?"),
    ],
)  # fmt: skip
def test_bad_csv_is_explained(log: Path, text: str | bytes, sentence: str) -> None:
    with pytest.raises(TraceError) as refused:
        from_csv(log, text)
    assert str(refused.value) == sentence


def test_a_broken_gzip_is_explained(tmp_path: Path) -> None:
    packed = gzip.compress(b"time,model\n" + b"1,a\n" * 1000)
    for broken in (packed[:-20], b"no gzip at all"):
        with pytest.raises(TraceError, match="cannot be read as CSV after line"):
            from_csv(tmp_path / "log.csv.gz", broken)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"time": [1.0]}, "There is no column model, only time: say which one holds the model with --columns model=NAME."),
        ({"time": ["1"], "model": ["a"]}, "Column time holds string, not seconds or a timestamp."),
        ({"time": [1.0], "model": [5]}, "Column model holds int64, not text."),
        ({"time": [1.0], "model": ["a"], "size": ["1"]}, "Column size holds string, not a number."),
        ({"time": [1.0, 2.0, None], "model": ["a", "b", "c"]}, "Row 3, column time is empty."),
        ({"time": [1.0, 2.0, 3.0], "model": ["a", "b", None]}, "Row 3, column model is empty: every request names its model."),
        ({"time": [1.0, 2.0], "model": ["a", "b"], "size": [1, -2]}, "Row 2, column size is negative."),
        ({"time": pa.array([], pa.float64()), "model": pa.array([], pa.string())}, "There are no requests in it."),
    ],
)  # fmt: skip
def test_bad_parquet_is_explained(log: Path, columns: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TraceError) as refused:
        from_parquet(log, columns)
    assert str(refused.value) == sentence


def test_what_is_no_parquet_is_explained(log: Path) -> None:
    log.write_text("time,model\n1,a\n")
    with pytest.raises(TraceError, match=r"^It cannot be read as Parquet: "):
        read_parquet(log, renamed={}, default_size_bytes=1, cost=COST)


def test_unknown_sizes_and_columns_are_explained(log: Path) -> None:
    with pytest.raises(TraceError) as refused:
        from_csv(log, "time,model,size\n1,a,5\n2,b,\n", size=None)
    assert str(refused.value).startswith("The size of 1 of 2 models is unknown, such as b: name a column")
    for renamed, sentence in (
        ({"tame": "time"}, "There is no column tame to rename: it is one of time, model, size, service_s, load_s."),
        ({"size": "bytes"}, "There is no column bytes, only time, model: say which one holds the size with --columns size=NAME."),
    ):  # fmt: skip
        with pytest.raises(TraceError) as refused:
            from_csv(log, "time,model\n1,a\n", renamed)
        assert str(refused.value) == sentence
