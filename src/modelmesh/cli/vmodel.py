"""`vmodel`: stable names that point at models."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from modelmesh.cli.client import Client, at
from modelmesh.cli.options import DEFAULT_OPS, Json, Ops, add_row, ago, console, print_json, table
from modelmesh.cli.quantities import parse_duration_s, parse_share

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
        bool,
        typer.Option(
            "--wait", help="Return when the switch is done or has failed, or the canary is on trial."
        ),
    ] = False,
    canary: Annotated[
        str,
        typer.Option(
            help="Try the target out first, on this share of the requests. It takes over when no more of them fail than of the "
            "active model's, else it is given up.",
            metavar="SHARE",
        ),
    ] = "",
    canary_for: Annotated[
        str, typer.Option(help="How long, at least, such as 90s, 10min, 2h; 0: until it had its requests.")
    ] = "10min",
    canary_requests: Annotated[int, typer.Option(help="The least the canary must have served.", min=0)] = 50,
    canary_slower: Annotated[
        float,
        typer.Option(
            help="Give it up as well when a request takes so many times longer than of the active model; 0: as long as it likes.",
            min=0,
        ),
    ] = 0.0,
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """Point a vmodel at a model; made when it does not exist."""
    body: dict[str, Any] = {
        "target": target,
        "owner": owner,
        "expected_target": expected_target,
        "force": force,
        "load": load,
        "wait": wait,
    }
    if canary:
        body["canary"] = {
            "share": parse_share("--canary", canary),
            "for_s": parse_duration_s("--canary-for", canary_for),
            "requests": canary_requests,
            "slower_max": canary_slower,
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
    removed = (
        f"Removed {vmodel}, unless it has another owner than {owner}." if owner else f"Removed {vmodel}."
    )
    console().print(removed, markup=False)


@app.command("list")
def list_vmodels(
    prefix: Annotated[str, typer.Argument(help="Only ids that start so.", metavar="PREFIX")] = "",
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
        return
    terminal = console()
    terminal.print(f"{vmodel['id']}: active {vmodel['active']}, target {_target(vmodel)}", markup=False)
    canary = vmodel["canary"]
    if not canary or not canary["outlook"]:
        return
    drawn = table(
        "MODEL", "SHARE", "REQUESTS", "ERRORS", "MEAN", right=("SHARE", "REQUESTS", "ERRORS", "MEAN")
    )
    sides = (("active", 1 - canary["share"]), ("target", canary["share"]))
    for side, share in sides:
        seen = canary[side]
        mean = f"{seen['execution_s'] * 1000:.3g} ms" if seen["execution_s"] else "-"
        add_row(
            drawn, vmodel[side], f"{100 * share:.3g} %", f"{seen['requests']:,}", f"{seen['errors']:,}", mean
        )
    terminal.print(drawn)
    terminal.print(f"Begun {ago(canary['since_unix_s'])}: {canary['outlook']}", markup=False)


def _target(vmodel: dict[str, Any]) -> str:
    canary = vmodel["canary"]
    if vmodel["target_failed"]:
        what = "given up" if canary and canary["since_unix_s"] else "failed"
        return f"{vmodel['target']} ({what}: {vmodel['reason']})"
    if vmodel["target"] == vmodel["active"]:
        return "settled"
    if canary:
        loading = "" if canary["since_unix_s"] else ", once it is loaded"
        return f"{vmodel['target']} (canary, {100 * canary['share']:.3g} %{loading})"
    return str(vmodel["target"])
