"""`register`: one model by flags, or many from a file of JSON lines or CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from modelmesh.cli.client import Client, at
from modelmesh.cli.exits import CommandFailed, Exit
from modelmesh.cli.models import keep_of
from modelmesh.cli.options import DEFAULT_OPS, Json, Ops, console, print_json
from modelmesh.cli.quantities import counted

_PER_CALL = 2_000
_NAMED = 20
_COLUMNS = "id,type,path,key,min_copies,max_copies,pin,priority"


def register(
    model: Annotated[str, typer.Argument(help="The id to register under.", metavar="ID")] = "",
    type: Annotated[str, typer.Option("--type", help="Model format: sklearn, xgboost, lightgbm, onnx.")] = "",
    path: Annotated[
        str,
        typer.Option("--path", help="Local file or folder; what does not exist here is passed on as it is."),
    ] = "",
    key: Annotated[str, typer.Option("--key", help="The predecessor's model key (JSON).")] = "",
    load: Annotated[bool, typer.Option("--load", help="Load it at once, and wait for that.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Register it also when no runtime there serves the type.")
    ] = False,
    min_copies: Annotated[
        int | None, typer.Option(help="Keep so many copies loaded, in different zones where there are some.")
    ] = None,
    max_copies: Annotated[
        int | None, typer.Option(help="Make no more copies than this; 0: no bound.")
    ] = None,
    pin: Annotated[
        bool | None, typer.Option("--pin/--no-pin", help="Do not evict it once it is loaded.")
    ] = None,
    priority: Annotated[
        float | None, typer.Option(help="How much its waiting counts, 0.01 to 100; 1: as of any other.")
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help=f"Many: a file of JSON lines or CSV ({_COLUMNS}); - for JSON lines on stdin.",
        ),
    ] = "",
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """Register a model, or many from a file. Repeating a registration is harmless. Of a model that is registered,
    --min-copies, --max-copies, --pin and --priority can be changed without the rest."""
    if bool(model) == bool(source):
        raise CommandFailed("Give either an ID with --type and --path, or --from FILE.", Exit.USAGE)
    keep = {"min_copies": min_copies, "max_copies": max_copies, "pin": pin, "priority": priority}
    kept = {name: value for name, value in keep.items() if value is not None}
    if source:
        _register_many(source, ops, kept | ({"force": True} if force else {}), as_json=as_json)
        return
    if kept and not (type or path or key or load or force):
        _change(model, kept, ops, as_json=as_json)
        return
    if not type:
        raise CommandFailed("--type is missing: the model format, for example sklearn.", Exit.USAGE)
    body = {"type": type, "path": _known(path), "key": key, "load": load, "wait": load, **kept}
    if force:  # instances of before this field refuse it
        body["force"] = True
    with Client(ops) as client:
        registered = client.put(at("models", model), body, wait_s=None if load else 10.0)
    if as_json:
        print_json(registered)
    else:
        console().print(f"Registered {registered['id']}; it is {registered['state']}.", markup=False)
    if registered["failure"] and load:
        raise CommandFailed(f"It did not load: {registered['failure']['reason']}", Exit.REFUSED)


def _change(model: str, kept: dict[str, Any], ops: str, *, as_json: bool) -> None:
    with Client(ops) as client:
        changed = client.patch(at("models", model), kept)
    if as_json:
        print_json(changed)
    else:
        console().print(f"{changed['id']} is kept as asked: {keep_of(changed)}.", markup=False)


def _register_many(source: str, ops: str, for_all: dict[str, Any], *, as_json: bool) -> None:
    """`for_all`: what holds for entries that do not say otherwise."""
    registered, failures = 0, list[dict[str, Any]]()
    with Client(ops) as client, ExitStack() as stack:
        entries, size_bytes = _read(source, stack)
        progress, task = _progress(stack, size_bytes)
        number = 0
        while group := list(islice(entries, _PER_CALL)):
            results = client.register_lines(
                b"".join(json.dumps({**for_all, **entry}).encode() + b"\n" for entry, _ in group)
            )
            for result in results:
                number += 1
                if result["error"]:
                    failures.append({"entry": number, "id": result["id"], "error": result["error"]})
                else:
                    registered += 1
            progress.update(task, completed=group[-1][1], description=f"{registered} registered")
    if as_json:
        print_json({"registered": registered, "failed": len(failures), "failures": failures})
    else:
        console().print(f"Registered {counted(registered, 'model')}.")
    for failure in failures[:_NAMED]:
        sys.stderr.write(f"entry {failure['entry']} ({failure['id']}): {failure['error']['message']}\n")
    if failures:
        more = f"; the first {_NAMED} are named above" if len(failures) > _NAMED else ""
        refused = counted(len(failures), "registration was", "registrations were")
        raise CommandFailed(f"{refused} refused{more}.", Exit.PARTLY)


def _read(source: str, stack: ExitStack) -> tuple[Iterator[tuple[dict[str, Any], int]], int | None]:
    """(entry, bytes read so far) pairs, and the size in bytes if known."""
    if source == "-":
        return _json_lines(sys.stdin.buffer, "stdin"), None
    path = Path(source)
    try:
        file = stack.enter_context(path.open("rb"))
    except OSError as error:
        raise CommandFailed(f"--from: {source} cannot be read: {error.strerror}.", Exit.USAGE) from error
    rows = _csv_rows(file, source) if path.suffix.lower() == ".csv" else _json_lines(file, source)
    return rows, path.stat().st_size


def _json_lines(file: IO[bytes], source: str) -> Iterator[tuple[dict[str, Any], int]]:
    read_bytes = 0
    for number, line in enumerate(file, start=1):
        read_bytes += len(line)
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise CommandFailed(f"{source}, line {number}: not JSON ({error}).", Exit.USAGE) from error
        if not isinstance(entry, dict):
            raise CommandFailed(f"{source}, line {number}: not a JSON object.", Exit.USAGE)
        yield _with_known_path(entry), read_bytes


def _csv_rows(file: IO[bytes], source: str) -> Iterator[tuple[dict[str, Any], int]]:
    read_bytes = 0

    def lines() -> Iterator[str]:
        nonlocal read_bytes
        for line in file:
            read_bytes += len(line)
            yield line.decode()

    reader = csv.DictReader(lines())
    if not {"id", "type"} <= set(reader.fieldnames or ()):
        raise CommandFailed(f"{source}: the first line must name the columns: {_COLUMNS}.", Exit.USAGE)
    for row in reader:
        yield _with_known_path({name: value for name, value in row.items() if name and value}), read_bytes


def _with_known_path(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "path": _known(entry["path"])} if isinstance(entry.get("path"), str) else entry


def _known(path: str) -> str:
    """What exists here is named in full, since the instance has another working directory. All else stays as it is: the
    instance takes it from its model root, a model server as it will."""
    try:
        local = Path(path).expanduser()
        return str(local.absolute()) if path and local.exists() else path
    except (OSError, RuntimeError):  # too long for a path, or in the home of nobody: not of this machine
        return path


def _progress(stack: ExitStack, size_bytes: int | None) -> tuple[Any, Any]:
    """A bar on a terminal's stderr; silent elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = console(stderr=True)
    progress = stack.enter_context(
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=terminal,
            transient=True,
            disable=not terminal.is_terminal,
        )
    )
    return progress, progress.add_task("0 registered", total=size_bytes)
