"""`list`, `status`, `load`, `unload`, `unregister`: one model, or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelmesh.cli.client import Client, at
from modelmesh.cli.options import (
    DEFAULT_OPS,
    Json,
    Ops,
    Timeout,
    add_row,
    ago,
    coloured,
    console,
    print_json,
    table,
)
from modelmesh.settings.sizes import format_size

if TYPE_CHECKING:
    from rich.text import Text

_SHOWN = 100

Name = Annotated[str, typer.Argument(help="A vmodel or a model.", metavar="NAME")]


def list_models(
    prefix: Annotated[str, typer.Argument(help="Only ids that start so.")] = "",
    state: Annotated[str, typer.Option(help="Only: cold, queued, loading, loaded, unloading, failed.")] = "",
    limit: Annotated[
        int | None, typer.Option(help="At most so many. Default: 100 in tables, all in JSON.", min=1)
    ] = None,
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """List models with their states, sizes and rates."""
    with Client(ops) as client:
        total = client.get("/models", prefix=prefix, state=state, limit=1)["total"]
        shown = limit if limit or as_json else _SHOWN
        models = list(client.pages("/models", "models", shown, prefix=prefix, state=state))
    if as_json:
        print_json({"models": models, "total": total})
        return
    if not models:
        console().print("No models." if not (prefix or state) else "No model matches.")
        return
    drawn = table("NAME", "MODEL", "TYPE", "STATE", "SIZE", "REQ/S", "LAST USED", right=("SIZE", "REQ/S"))
    for model in models:
        add_row(
            drawn,
            ", ".join(model["names"]) or "-",
            model["id"],
            model["type"],
            _state(model),
            format_size(model["size_bytes"]) if model["size_bytes"] else "-",
            f"{model['requests_per_s']:.3g}",
            ago(model["last_used_unix_s"]),
        )
    terminal = console()
    terminal.print(drawn)
    if total > len(models):
        terminal.print(f"[dim]{len(models)} of {total} shown; --limit shows more.[/]")


def status(
    name: Annotated[
        str, typer.Argument(help="A vmodel or a model; without it, the instance.", metavar="[NAME]")
    ] = "",
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """How the instance, or one model, is doing."""
    with Client(ops) as client:
        found = client.get(at("models", name)) if name else client.get("/instance")
    if as_json:
        print_json(found)
    else:
        console().print(_model_lines(found) if name else instance_lines(found))


def load(name: Name, timeout: Timeout = 120.0, ops: Ops = DEFAULT_OPS, as_json: Json = False) -> None:
    """Load a model now and hold it until its first use."""
    _move("load", name, timeout, ops, as_json)


def unload(name: Name, timeout: Timeout = 120.0, ops: Ops = DEFAULT_OPS, as_json: Json = False) -> None:
    """Unload a model once its requests are done; it loads again when asked for."""
    _move("unload", name, timeout, ops, as_json)


def unregister(
    model: Annotated[str, typer.Argument(help="The id of a model.", metavar="ID")], ops: Ops = DEFAULT_OPS
) -> None:
    """Remove a model. Ids that are not registered are no error."""
    with Client(ops) as client:
        client.delete(at("models", model))
    console().print(f"Unregistered {model}.", markup=False)


def _move(verb: str, name: str, timeout_s: float, ops: str, as_json: bool) -> None:
    with Client(ops) as client:
        model = client.post(at("models", name, f":{verb}"), wait_s=timeout_s + 5, timeout_s=timeout_s)
    if as_json:
        print_json(model)
    else:
        console().print(f"{model['id']} is {model['state']}.", markup=False)


def _state(model: dict[str, Any]) -> Text:
    colour = {"loaded": "green", "failed": "red", "cold": "dim"}.get(model["state"], "yellow")
    return coloured(model["state"], colour)


def keep_of(model: dict[str, Any]) -> str:
    """How a model is kept, in words."""
    said = []
    if model["min_copies"]:
        said.append(f"at least {_copies(model['min_copies'])} loaded")
    if model["max_copies"]:
        said.append(f"at most {_copies(model['max_copies'])}")
    if model["pin"]:
        said.append("not evicted")
    if model["priority"] != 1:
        said.append(f"priority {model['priority']:g}")
    return ", ".join(said) or "as any other"


def _copies(n: int) -> str:
    return "1 copy" if n == 1 else f"{n} copies"


def _model_lines(model: dict[str, Any]) -> Any:
    drawn = table("", "")
    drawn.show_header = False
    rows: dict[str, str | Text] = {
        "model": model["id"],
        "names": ", ".join(model["names"]) or "-",
        "type": model["type"],
        "path": model["path"] or "-",
        "state": _state(model),
        "size": f"{format_size(model['size_bytes'])} {'measured' if model['size_measured'] else 'estimated'}",
        "load": f"{model['load_s']:.3g} s, {model['loads_total']} so far",
        "requests": f"{model['requests_total']}, about {model['requests_per_s']:.3g}/s, last {ago(model['last_used_unix_s'])}",
        "now": f"{model['replicas']} replicas, {model['in_flight']} in flight, {model['waiting']} waiting",
    }
    if (kept := keep_of(model)) != "as any other":
        rows["kept"] = kept
    if model["pinned_by"]:
        rows["held"] = model["pinned_by"]
    if model["failure"]:
        rows["failure"] = f"{model['failure']['code']}: {model['failure']['reason']}"
    for label, value in rows.items():
        add_row(drawn, coloured(label, "bold"), value)
    return drawn


def instance_lines(instance: dict[str, Any]) -> Any:
    """The instance at a glance, as `status` and `top` show it."""
    ledger, addresses = instance["ledger"], instance["addresses"]
    condition = "draining" if instance["draining"] else "ready" if instance["ready"] else "starting"
    drawn = table("", "")
    drawn.show_header = False
    rows: dict[str, str | Text] = {
        "instance": f"{instance['id']}, version {instance['version']}, process {instance['pid']}, {condition}, "
        f"started {ago(instance['started_unix_s'])}",
        "addresses": f"gRPC {addresses['grpc']}, REST {addresses['rest']}, ops {addresses['ops']}",
        "folder": instance["folder"] or "-",
        "models": f"{instance['models_registered']} registered, {instance['models_loaded']} loaded, "
        f"{instance['models_failed']} failed; {instance['vmodels_registered']} vmodels",
        "memory": f"{format_size(ledger['loaded_bytes'])} of {format_size(ledger['capacity_bytes'])} used by models, "
        f"{format_size(ledger['free_bytes'])} free; budget {format_size(instance['budget_bytes'])}",
        "loads": f"{instance['loads_running']} running, {instance['loads_queued']} queued; "
        f"{instance['loads_total']} so far, {instance['load_failures_total']} failed",
        "requests": f"{instance['requests_total']} so far, {instance['in_flight']} in flight, {instance['parked']} parked; "
        f"{instance['faults_total']} faults, {instance['refusals_total']} refusals",
        "evictions": f"{instance['evictions_total']} so far, by {instance['eviction_policy']}",
    }
    for worker in instance["workers"]:
        rows[worker["name"]] = (
            f"{format_size(worker['pss_bytes'])} PSS: {format_size(worker['base_bytes'])} base, "
            f"{format_size(worker['charged_bytes'])} models"
        )
    if instance["thrashing"]:
        rows["thrashing"] = coloured(instance["thrashing"], "red")
    for label, value in rows.items():
        add_row(drawn, coloured(label, "bold"), value)
    return drawn
