"""`list`, `load`, `unload`, `unregister`: one model, or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

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
    laid_out,
    per_s,
    print_json,
    table,
)
from modelmesh.cli.quantities import counted
from modelmesh.settings.sizes import format_size

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_SHOWN: Final = 100
_COPIES_SHOWN: Final = 3
_STATE_COLOURS: Final = {"loaded": "green", "failed": "red", "cold": "dim"}
"""Others are on their way, and yellow."""

Name = Annotated[str, typer.Argument(help="A vmodel or a model.", metavar="NAME")]


def list_models(
    prefix: Annotated[str, typer.Argument(help="Only ids that start so.", metavar="PREFIX")] = "",
    state: Annotated[str, typer.Option(help="Only: cold, queued, loading, loaded, unloading, failed.")] = "",
    instance: Annotated[
        str, typer.Option(help="Only what this instance holds or failed to load.", metavar="ID")
    ] = "",
    sort: Annotated[
        str, typer.Option(help="id; or the highest first, without cold models: rate, size, used, copies.")
    ] = "id",
    limit: Annotated[
        int | None, typer.Option(help="At most so many. Default: 100 in tables, all in JSON.", min=1)
    ] = None,
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """List the models of the mesh with their states, copies, sizes and rates."""
    query: dict[str, Any] = {"prefix": prefix, "state": state, "instance": instance, "sort": sort}
    with Client(ops) as client:
        total = client.get("/models", **query, limit=1)["total"]
        shown = limit if limit or as_json else _SHOWN
        models = list(client.pages("/models", "models", shown, **query))
        several = not as_json and len(client.get("/instances")["instances"]) > 1
    if as_json:
        print_json({"models": models, "total": total})
        return
    if not models:
        console().print("No model matches." if prefix or state or instance or sort != "id" else "No models.")
        return
    terminal = console()
    terminal.print(model_table(models, several=several))
    if total > len(models):
        terminal.print(f"[dim]{len(models)} of {total} shown; --limit shows more.[/]")


def model_table(models: list[dict[str, Any]], *, several: bool) -> Table:
    """Models as `list` and `top` show them; with `several` instances it tells where they are."""
    rows = [
        {
            "NAME": ", ".join(model["names"]) or "-",
            "MODEL": model["id"],
            "TYPE": model["type"],
            "STATE": _state(model),
            **({"COPIES": _where(model["copies"])} if several else {}),
            "SIZE": format_size(model["size_bytes"]) if model["size_bytes"] else "-",
            "REQ/S": per_s(model["requests_per_s"]),
            "LAST USED": ago(model["last_used_unix_s"]),
        }
        for model in models
    ]
    return laid_out(rows, right=("SIZE", "REQ/S"), spare=("TYPE", "LAST USED"))


def _where(copies: list[dict[str, Any]]) -> str:
    """The instances that have it loaded, then those that are about to, then in how many it failed."""
    told = sorted(copy["instance"] for copy in copies if copy["state"] == "loaded")
    told += [
        f"{copy['instance']} {copy['state']}" for copy in copies if copy["state"] not in ("loaded", "failed")
    ]
    more = [f"and {len(told) - _COPIES_SHOWN} more"] if len(told) > _COPIES_SHOWN else []
    failed = sum(copy["state"] == "failed" for copy in copies)
    return ", ".join([*told[:_COPIES_SHOWN], *more, *([f"failed in {failed}"] if failed else [])]) or "-"


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


def _state(of: dict[str, Any]) -> Text:
    """Of a model or a copy."""
    return coloured(of["state"], _STATE_COLOURS.get(of["state"], "yellow"))


def keep_of(model: dict[str, Any]) -> str:
    """How a model is kept, in words."""
    said = []
    if model["min_copies"]:
        said.append(f"at least {counted(model['min_copies'], 'copy', 'copies')} loaded")
    if model["max_copies"]:
        said.append(f"at most {counted(model['max_copies'], 'copy', 'copies')}")
    if model["pin"]:
        said.append("not evicted")
    if model["priority"] != 1:
        said.append(f"priority {model['priority']:g}")
    return ", ".join(said) or "as any other"


def model_lines(model: dict[str, Any]) -> Any:
    """One model, as `status` shows it; its copies in a table when there are several."""
    drawn = table("", "")
    drawn.show_header = False
    rows: dict[str, str | Text] = {
        "model": model["id"],
        "names": ", ".join(model["names"]) or "-",
        "type": model["type"],
        "path": model["path"] or "-",
        "state": _state(model),
        "size": _size(model),
        "load": f"{model['load_s']:.3g} s" if model["load_s"] else "-",
        "requests": f"about {per_s(model['requests_per_s'])}/s, last {ago(model['last_used_unix_s'])}",
        "here": f"{counted(model['replicas'], 'replica')}, {model['in_flight']} in flight, {model['waiting']} waiting; "
        f"{counted(model['requests_total'], 'request')} and {counted(model['loads_total'], 'load')} so far",
    }
    if (kept := keep_of(model)) != "as any other":
        rows["kept"] = kept
    if model["pinned_by"]:
        rows["held"] = model["pinned_by"]
    if model["failure"]:
        rows["failure"] = f"{model['failure']['code']}: {model['failure']['reason']}"
    for label, value in rows.items():
        add_row(drawn, coloured(label, "bold"), value)
    if len(model["copies"]) < 2:
        return drawn
    from rich.console import Group

    return Group(drawn, "", _copies_table(model["copies"]))


def _size(model: dict[str, Any]) -> str:
    if not model["size_bytes"]:
        return "-"
    return f"{format_size(model['size_bytes'])} {'measured' if model['size_measured'] else 'estimated'}"


def _copies_table(copies: list[dict[str, Any]]) -> Table:
    rows = [
        {
            "INSTANCE": copy["instance"],
            "STATE": _state(copy),
            "SIZE": format_size(copy["size_bytes"]) if copy["state"] == "loaded" else "-",
            "REQ/S": per_s(copy["requests_per_s"]) if copy["state"] == "loaded" else "-",
            "LAST USED": ago(copy["last_used_unix_s"]) if copy["state"] == "loaded" else "-",
            "WHY": copy["reason"] or "-",
        }
        for copy in copies
    ]
    return laid_out(rows, right=("SIZE", "REQ/S"))
