"""Reading a request log from CSV: a header line, then one request per line; .gz too."""

from __future__ import annotations

import csv
import gzip
import io
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from modelmesh.simulate.columns import OPTIONAL, PerModel, chosen, finish, parse_amount, parse_time
from modelmesh.simulate.trace import LoadCost, Trace, TraceError

_TOLD_EVERY: Final = 1 << 14


def read_csv(
    path: Path,
    *,
    renamed: Mapping[str, str],
    default_size_bytes: int | None,
    cost: LoadCost,
    progress: Callable[[int], None] = lambda bytes_read: None,
) -> Trace:
    """`progress` is told of so many more bytes read. Raises TraceError with the row and the column; the header is row 1."""
    with path.open("rb") as raw:
        unpacked = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
        with io.TextIOWrapper(unpacked, "utf-8-sig", newline="") as text:
            rows = csv.reader(_told(text, raw.tell, progress))
            try:
                return _gather(rows, renamed, default_size_bytes, cost)
            except UnicodeDecodeError as error:
                raise TraceError(f"It is not text in UTF-8 ({error.reason}): is it CSV?") from error
            except (csv.Error, EOFError, gzip.BadGzipFile) as error:
                raise TraceError(f"It cannot be read as CSV after line {rows.line_num}: {error}.") from error


def _told(lines: Iterable[str], tell: Callable[[], int], progress: Callable[[int], None]) -> Iterator[str]:
    told = 0
    for number, line in enumerate(lines):
        yield line
        if number % _TOLD_EVERY == 0:
            progress(tell() - told)
            told = tell()


def _gather(
    rows: Iterator[list[str]], renamed: Mapping[str, str], default_size_bytes: int | None, cost: LoadCost
) -> Trace:
    header = [name.strip() for name in next(rows, [])]
    if not header:
        raise TraceError("It is empty: the first line names the columns, at least time,model.")
    found = chosen(header, renamed)
    time_at, model_at = header.index(found["time"]), header.index(found["model"])
    extra = [(name, header.index(found[name])) for name in OPTIONAL if name in found]
    at_s, model, numbers, told = array("d"), array("i"), dict[str, int](), PerModel()
    when: Callable[[str], float] | None = None
    for row_number, row in enumerate(rows, 2):
        if not row:
            continue
        try:
            when = when or (float if _is_number(row[time_at]) else parse_time)
            request_s, name = when(row[time_at]), row[model_at]
            if request_s - request_s != 0.0 or not name:
                raise ValueError
            number = numbers.get(name)
            if number is None:
                number = numbers[name] = len(numbers)
                told.grow(len(numbers))
            for column, place in extra:
                if row[place]:
                    told.add(column, number, parse_amount(row[place]))
        except (ValueError, IndexError):
            raise _complaint(row, row_number, header, found, by_number=when is float) from None
        at_s.append(request_s)
        model.append(number)
    return finish(np.array(at_s), np.array(model, np.int32), list(numbers), told, default_size_bytes, cost)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _complaint(
    row: Sequence[str], row_number: int, header: Sequence[str], found: Mapping[str, str], *, by_number: bool
) -> TraceError:
    """What is wrong with the row."""
    if len(row) < len(header):
        return TraceError(f"Row {row_number} has {len(row)} columns and the header {len(header)}.")
    for ours, theirs in found.items():
        text = row[header.index(theirs)]
        place = f"Row {row_number}, column {theirs}"
        if ours == "model":
            if not text:
                return TraceError(f"{place} is empty: every request names its model.")
            continue
        if ours != "time" and not text:
            continue
        try:
            (parse_time if ours == "time" else parse_amount)(text)
        except ValueError:
            what = "a time (seconds, or ISO 8601)" if ours == "time" else "a number that is not negative"
            return TraceError(f"{place}: {text!r} is not {what}.")
        if ours == "time" and by_number and not _is_number(text):
            return TraceError(f"{place}: {text!r} is a date, but the rows before it tell seconds.")
    return TraceError(f"Row {row_number} cannot be understood.")
