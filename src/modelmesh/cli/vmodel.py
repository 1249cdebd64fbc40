"""`vmodel`: stable names that point at models."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from modelmesh.cli.client import Client, at
from modelmesh.cli.options import DEFAULT_OPS, Json, Ops, add_row, console, print_json, table

app = typer.Typer(no_args_is_help=True, help="Stable names that point at models.")

Id = Annotated[str, typer.Argument(help="The vmodel.", metavar="VMODEL")]
Owner = Annotated[str, typer.Option(help="Only if this is its owner.")]


@app.command("set")
def set_vmodel(
    vmodel: Id,
    target: Annotated[str, typer.Argument(help="The id of the model it shall point at.", metavar="MODEL")],
    owner: Annotated[str, typer.Option(help="Owner of a new vmodel; an existing one must have it.")] = "",
    expected_target: Annotated[str, typer.Option(help="Refuse unless this is its target now.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Switch at once, without waiting for the target to load.")
    ] = False,
    load: Annotated[
        bool, typer.Option("--load", help="Load the target even if the active model is not loaded.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the switch is done or has failed.")
    ] = False,
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """Point a vmodel at a model; made when it does not exist."""
    body = {
        "target": target,
        "owner": owner,
        "expected_target": expected_target,
        "force": force,
        "load": load,
        "wait": wait,
    }
    with Client(ops) as client:
        _show(client.put(at("vmodels", vmodel), body, wait_s=None if wait else 10.0), as_json)


@app.command("get")
def get_vmodel(vmodel: Id, owner: Owner = "", ops: Ops = DEFAULT_OPS, as_json: Json = False) -> None:
    """Where a vmodel points."""
    with Client(ops) as client:
        _show(client.get(at("vmodels", vmodel), owner=owner), as_json)


@app.command("delete")
def delete_vmodel(vmodel: Id, owner: Owner = "", ops: Ops = DEFAULT_OPS) -> None:
    """Remove a vmodel. Unknown ones and those of other owners are no error and stay as they are."""
    with Client(ops) as client:
        client.delete(at("vmodels", vmodel), owner=owner)


@app.command("list")
def list_vmodels(
    prefix: Annotated[str, typer.Argument(help="Only ids that start so.")] = "",
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """List vmodels."""
    with Client(ops) as client:
        vmodels = list(client.pages("/vmodels", "vmodels", None, prefix=prefix))
    if as_json:
        print_json({"vmodels": vmodels})
        return
    drawn = table("VMODEL", "ACTIVE", "TARGET", "OWNER")
    for each in vmodels:
        add_row(drawn, each["id"], each["active"], _target(each), each["owner"] or "-")
    console().print(drawn if vmodels else "No vmodels.")


def _show(vmodel: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(vmodel)
    else:
        console().print(f"{vmodel['id']}: active {vmodel['active']}, target {_target(vmodel)}", markup=False)


def _target(vmodel: dict[str, Any]) -> str:
    if vmodel["target_failed"]:
        return f"{vmodel['target']} (failed: {vmodel['reason']})"
    return "settled" if vmodel["target"] == vmodel["active"] else str(vmodel["target"])
