"""`status`, `instances`, `cordon`, `uncordon`, `drain`: the instances of the mesh, and what may be asked of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelmesh.cli.client import Client, at
from modelmesh.cli.models import model_lines
from modelmesh.cli.options import (
    DEFAULT_OPS,
    Json,
    Ops,
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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_This = Annotated[
    str, typer.Argument(help="Its id; without it, the instance that is asked.", metavar="INSTANCE")
]


def status(
    name: Annotated[
        str, typer.Argument(help="A vmodel or a model; without it, the instances.", metavar="NAME")
    ] = "",
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """How the instance and its mesh are doing, or one model."""
    with Client(ops) as client:
        found = client.get(at("models", name)) if name else client.get("/instance")
        members = [] if name or as_json else client.get("/instances")["instances"]
    if as_json:
        print_json(found)
        return
    terminal = console()
    terminal.print(model_lines(found) if name else instance_lines(found))
    if len(members) > 1:
        terminal.print()
        _print_instances(members, terminal)


def instances(ops: Ops = DEFAULT_OPS, as_json: Json = False) -> None:
    """The instances of the mesh, and how each is doing."""
    with Client(ops) as client:
        answer = client.get("/instances")
    if as_json:
        print_json(answer)
    else:
        _print_instances(answer["instances"], console())


def _print_instances(members: list[dict[str, Any]], terminal: Console) -> None:
    """In a table; below it, why some are not heard."""
    terminal.print(instance_table(members))
    for member in members:
        if trouble := member.get("trouble"):  # unknown to older instances
            terminal.print(f"{member['id']}: {trouble}", markup=False)


def cordon(instance: _This = "", ops: Ops = DEFAULT_OPS) -> None:
    """Place no more models in an instance; those it has go on being served. Ends with the process, or with `uncordon`."""
    id = _order("cordon", instance, ops)
    console().print(f"{id} is cordoned: no model is placed there, and those it has are served.", markup=False)


def uncordon(instance: _This = "", ops: Ops = DEFAULT_OPS) -> None:
    """Place models in a cordoned instance again."""
    console().print(f"{_order('uncordon', instance, ops)} takes models again.", markup=False)


def drain(
    instance: Annotated[str, typer.Argument(help="Its id.", metavar="INSTANCE")], ops: Ops = DEFAULT_OPS
) -> None:
    """Have an instance hand over what it alone holds and then serve no more, as before a stop. Cannot be taken back."""
    id = _order("drain", instance, ops)
    console().print(f"{id} drains. Stop it once it has no copies: modelmesh instances tells.", markup=False)


def _order(verb: str, instance: str, ops: str) -> str:
    """Have it done. Returns the instance's id."""
    with Client(ops) as client:
        id = instance or str(client.get("/instance")["id"])
        client.post(at("instances", id, f":{verb}"))
    return id


def instance_table(
    members: list[dict[str, Any]], rates: dict[str, tuple[float, float]] | None = None
) -> Table:
    """All instances; `*` marks the one that is asked. With `rates`, per second, of loads and evictions of each, instead of their
    numbers so far. Zones, versions and revisions are told where there are different ones."""
    told_apart = [
        field for field in ("zone", "version", "revision") if len({member[field] for member in members}) > 1
    ]
    rows = [
        {
            "INSTANCE": f"{member['id']} *" if member["here"] and len(members) > 1 else member["id"],
            **{field.upper(): member[field] or "-" for field in told_apart},
            "CONDITION": _condition(member),
            **_numbers(member, rates),
            "STARTED": ago(member["started_unix_s"]),
        }
        for member in members
    ]
    spare = ("PRICE", "STARTED", "CAPACITY", "BUSY", "REVISION", "VERSION", "ZONE", "QUEUE")
    return laid_out(rows, right=tuple(_numbers(members[0], rates)), spare=spare)


def _numbers(member: dict[str, Any], rates: dict[str, tuple[float, float]] | None) -> dict[str, str]:
    each_s = "" if rates is None else "/S"
    loads, evictions = (rates or {}).get(member["id"], (member["loads_total"], member["evictions_total"]))
    numbers = {
        "COPIES": str(member["copies"]),
        "CAPACITY": format_size(member["capacity_bytes"]),
        "FREE": format_size(member["free_bytes"]),
        "PRICE": _price(member["price"]),
        "BUSY": f"{member['busyness']:.0%}",
        "REQ/S": per_s(member["requests_per_s"]),
        "QUEUE": _queue(member),
        f"LOADS{each_s}": f"{loads:.6g}" if rates is None else per_s(loads),
        f"EVICTIONS{each_s}": f"{evictions:.6g}" if rates is None else per_s(evictions),
    }
    return numbers if member["told"] else dict.fromkeys(numbers, "-")


def _condition(member: dict[str, Any]) -> Text:
    if member["suspected"]:
        return coloured("no answer", "red")
    if not member["told"]:
        return coloured("unknown", "yellow")
    if member["draining"]:
        return coloured("draining", "yellow")
    return coloured("cordoned", "yellow") if member["cordoned"] else coloured("ok", "green")


def _queue(member: dict[str, Any]) -> str:
    """Loads that run and wait, and how long one more would wait."""
    if not member["loads_running"] and not member["loads_queued"]:
        return "-"
    return f"{member['loads_running']}+{member['loads_queued']}, {member['load_queue_s']:.2g} s"


def _price(price: float | None) -> str:
    """Seconds of loading per hour that evicting a MiB costs: a number people can compare."""
    if price is None:
        return "all held"
    return "-" if not price else f"{price * 3600 * (1 << 20):.3g} s/h/MiB"


def instance_lines(instance: dict[str, Any]) -> Any:
    """The instance at a glance, as `status` and `top` show it."""
    ledger, addresses = instance["ledger"], instance["addresses"]
    condition = "draining" if instance["draining"] else "ready" if instance["ready"] else "starting"
    condition += ", cordoned" if instance["cordoned"] else ""
    drawn = table("", "")
    drawn.show_header = False
    rows: dict[str, str | Text] = {
        "instance": f"{instance['id']}, version {instance['version']}, process {instance['pid']}, {condition}, "
        f"started {ago(instance['started_unix_s'])}",
        "addresses": f"gRPC {addresses['grpc']}, REST {addresses['rest']}, ops {addresses['ops']}",
        "folder": instance["folder"] or "-",
        "models": f"{instance['models_registered']} registered, {instance['models_loaded']} loaded, "
        f"{instance['models_failed']} failed; {counted(instance['vmodels_registered'], 'vmodel')}",
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
