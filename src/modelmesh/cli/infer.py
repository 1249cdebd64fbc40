"""`infer`: one inference over REST, from a JSON object or just rows of numbers."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer

from modelmesh.cli.client import Client
from modelmesh.cli.exits import CommandFailed, Exit
from modelmesh.cli.models import Name
from modelmesh.cli.options import DEFAULT_OPS, Ops, Timeout, file_text, print_json


def infer(
    name: Name,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help='The request: {"inputs": [...]}, or rows like [[5.1, 3.5]] for a model with one input; @FILE, or - for stdin.',
        ),
    ],
    timeout: Timeout = 120.0,
    ops: Ops = DEFAULT_OPS,
) -> None:
    """Ask a model for a prediction and print its answer (JSON)."""
    body = _parse(_read(data))
    path = f"/v2/models/{quote(name, safe='')}"
    with Client(ops) as client:
        if isinstance(body, list):
            body = _request_of_rows(body, client.rest("GET", path, wait_s=timeout))
        print_json(client.rest("POST", f"{path}/infer", content=json.dumps(body).encode(), wait_s=timeout))


def _read(data: str) -> str:
    if data == "-":
        return sys.stdin.read()
    return file_text(data[1:], "--data") if data.startswith("@") else data


def _parse(text: str) -> Any:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise CommandFailed(
            f"--data is not JSON ({error}); write an object or rows, or @FILE to read a file.", Exit.USAGE
        ) from error
    if not isinstance(body, dict | list):
        raise CommandFailed(
            '--data is neither an object like {"inputs": [...]} nor rows like [[5.1, 3.5]].', Exit.USAGE
        )
    return body


def _request_of_rows(rows: list[Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """A request with these rows as the model's one input; what the metadata leaves open is guessed from the rows."""
    inputs = metadata.get("inputs") or [{}]
    if len(inputs) > 1:
        names = ", ".join(each["name"] for each in inputs)
        raise CommandFailed(
            f'The model has the inputs {names}; write {{"inputs": [...]}} in --data.', Exit.USAGE
        )
    shape = _shape(rows)
    return {
        "inputs": [
            {
                "name": inputs[0].get("name") or "input",
                "shape": shape,
                "datatype": inputs[0].get("datatype") or _datatype(rows),
                "data": rows,
            }
        ]
    }


def _shape(rows: Any) -> list[int]:
    shape = []
    while isinstance(rows, list):
        shape.append(len(rows))
        if not rows:
            break
        rows = rows[0]
    return shape


def _datatype(rows: Any) -> str:
    while isinstance(rows, list) and rows:
        rows = rows[0]
    return "BYTES" if isinstance(rows, str) else "BOOL" if isinstance(rows, bool) else "FP64"
