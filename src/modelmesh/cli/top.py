"""`top`: a live view of the instances and of the models that are used most."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer

from modelmesh.cli.client import Client
from modelmesh.cli.instances import instance_lines, instance_table
from modelmesh.cli.models import model_table
from modelmesh.cli.options import DEFAULT_OPS, Json, Ops, console, print_json

_ROWS_MAX: Final = 250


def top(
    once: Annotated[bool, typer.Option("--once", help="Print it once and return.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 1.0,
    rows: Annotated[int, typer.Option(help="How many models.", min=1, max=_ROWS_MAX)] = 20,
    sort: Annotated[str, typer.Option(help="Which models: by rate, size, used or copies.")] = "rate",
    instance: Annotated[str, typer.Option(help="Only models of this instance.", metavar="ID")] = "",
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """Watch the instances and the models that are used most. Ctrl-C ends it."""
    with Client(ops) as client:

        def look() -> _Look:
            query = {"state": "loaded", "sort": sort, "instance": instance, "limit": rows}
            return _Look(
                client.get("/instance"),
                client.get("/instances")["instances"],
                client.get("/models", **query)["models"],
            )

        now = look()
        if as_json:
            print_json({"instance": now.instance, "instances": now.instances, "busiest": now.models})
        elif once:
            console().print(_view(now, None))
        else:
            _watch(look, now, interval)


@dataclass(frozen=True, slots=True)
class _Look:
    """What was answered at one time."""

    instance: dict[str, Any]
    instances: list[dict[str, Any]]
    models: list[dict[str, Any]]
    at_s: float = field(default_factory=time.monotonic)


def _watch(look: Callable[[], _Look], now: _Look, interval_s: float) -> None:
    from rich.live import Live

    with Live(_view(now, None), console=console(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            before, now = now, look()
            live.update(_view(now, before), refresh=True)


def _view(now: _Look, before: _Look | None) -> Any:
    """Loads and evictions per second where there is a look before, else their numbers so far."""
    from rich.console import Group

    several = len(now.instances) > 1
    head = instance_table(now.instances, _rates(now, before)) if several else instance_lines(now.instance)
    models = model_table(now.models, several=several) if now.models else "No model is loaded."
    return Group(head, "", models)


def _rates(now: _Look, before: _Look | None) -> dict[str, tuple[float, float]] | None:
    if before is None:
        return None
    passed_s = max(now.at_s - before.at_s, 1e-3)
    then = {(member["id"], member["started_unix_s"]): member for member in before.instances}
    rates = {}
    for member in now.instances:
        known = then.get((member["id"], member["started_unix_s"]), member)
        loads = member["loads_total"] - known["loads_total"]
        evictions = member["evictions_total"] - known["evictions_total"]
        rates[member["id"]] = (max(loads, 0) / passed_s, max(evictions, 0) / passed_s)
    return rates
