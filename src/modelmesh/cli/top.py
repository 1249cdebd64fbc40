"""`top`: a live view of the instance and its busiest models."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from modelmesh.cli.client import Client
from modelmesh.cli.models import instance_lines
from modelmesh.cli.options import DEFAULT_OPS, Json, Ops, add_row, ago, console, print_json, table
from modelmesh.settings.sizes import format_size

_LOOKED_AT = 2_000
"""The busiest are picked among so many loaded models: eight pages per look."""


def top(
    once: Annotated[bool, typer.Option("--once", help="Print it once and return.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 1.0,
    rows: Annotated[int, typer.Option(help="How many models.", min=1)] = 20,
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """Watch the instance and its busiest models. Ctrl-C ends it."""
    with Client(ops) as client:
        if as_json or once:
            instance, models = _look(client, rows)
            if as_json:
                print_json({"instance": instance, "busiest": models})
            else:
                console().print(_view(instance, models))
            return
        from rich.live import Live

        with Live(_view(*_look(client, rows)), console=console(), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(_view(*_look(client, rows)), refresh=True)


def _look(client: Client, rows: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    models = list(client.pages("/models", "models", _LOOKED_AT, state="loaded"))
    busiest = sorted(models, key=lambda model: (-model["requests_per_s"], model["id"]))[:rows]
    return client.get("/instance"), busiest


def _view(instance: dict[str, Any], models: list[dict[str, Any]]) -> Any:
    from rich.console import Group

    drawn = table(
        "NAME",
        "MODEL",
        "REQ/S",
        "IN FLIGHT",
        "WAITING",
        "SIZE",
        "LAST USED",
        right=("REQ/S", "IN FLIGHT", "WAITING", "SIZE"),
    )
    for model in models:
        add_row(
            drawn,
            ", ".join(model["names"]) or "-",
            model["id"],
            f"{model['requests_per_s']:.3g}",
            str(model["in_flight"]),
            str(model["waiting"]),
            format_size(model["size_bytes"]),
            ago(model["last_used_unix_s"]),
        )
    return Group(instance_lines(instance), "", drawn if models else "No model is loaded.")
