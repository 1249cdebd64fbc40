"""Options that many commands share, and how results are printed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelmesh.cli.exits import CommandFailed, Exit

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_PIPED_COLUMNS = 1_000
"""Nothing is cut off for programs that read tables."""
_GAP = 2
"""Between two columns."""
DEFAULT_OPS = "http://127.0.0.1:8089"

Ops = Annotated[
    str,
    typer.Option("--ops", envvar="MODELMESH_OPS", help="URL of the ops port of the instance.", metavar="URL"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, with the schemas of docs/cli.md.")]
Timeout = Annotated[float, typer.Option("--timeout", help="How long to wait, in seconds.", min=0.001)]


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def console(*, stderr: bool = False) -> Console:
    """A terminal for people; rich is imported only by commands that draw."""
    from rich.console import Console

    terminal = Console(stderr=stderr, highlight=False)
    return terminal if terminal.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPED_COLUMNS)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table without lines; the columns in `right` are numbers."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return drawn


def laid_out(
    rows: Sequence[Mapping[str, str | Text]], *, right: tuple[str, ...] = (), spare: tuple[str, ...] = ()
) -> Table:
    """A table of one row or more, with equal columns; without as many of the `spare` ones as the terminal is too narrow for, the
    first of them first."""
    widths = {column: max(len(column), *(_width(row[column]) for row in rows)) for column in rows[0]}
    available = console().width
    for column in spare:
        if sum(widths.values()) + _GAP * (len(widths) - 1) <= available:
            break
        widths.pop(column, None)
    drawn = table(*widths, right=right)
    for row in rows:
        add_row(drawn, *(row[column] for column in widths))
    return drawn


def _width(cell: str | Text) -> int:
    from rich.cells import cell_len

    return cell_len(str(cell))


def add_row(drawn: Table, *cells: str | Text) -> None:
    """A row of plain texts: what looks like markup in an id is shown as it is."""
    from rich.text import Text

    drawn.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))


def coloured(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(text, style)


def file_text(path: str, option: str = "") -> str:
    """What is in a file that was named on the command line, behind this option. Raises CommandFailed."""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise CommandFailed(f"{option and option + ': '}{path} cannot be read: {why}.", Exit.USAGE) from error


def ago(unix_s: float | None) -> str:
    """How long since: "never", "5 s ago", "3 min ago"."""
    if not unix_s:
        return "never"
    seconds = max(0.0, time.time() - unix_s)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def per_s(rate: float) -> str:
    """A rate for people: three digits, and nothing of what is less than one in a quarter of an hour."""
    return f"{rate:.3g}" if rate >= 0.001 else "0"
