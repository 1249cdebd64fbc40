"""`explain`: what happened to a model, and why, as a story."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from modelmesh.cli.client import Client, at
from modelmesh.cli.models import Name
from modelmesh.cli.options import DEFAULT_OPS, Json, Ops, console, print_json, table
from modelmesh.settings.sizes import format_size

if TYPE_CHECKING:
    from rich.table import Table


def explain(name: Name, ops: Ops = DEFAULT_OPS, as_json: Json = False) -> None:
    """Tell what happened to a model, or to requests for it, and why: from the journals of all instances."""
    with Client(ops) as client:
        story = client.get(at("explain", name))
    if as_json:
        print_json(story)
        return
    terminal = console()
    terminal.print(story["now"], markup=False)
    for mute in story["unanswered"]:
        terminal.print(f"Instance {mute['instance']} could not be asked: {mute['reason']}", markup=False)
    if not story["entries"]:
        terminal.print("[dim]No journal remembers anything of it.[/]")
        return
    terminal.print()
    if story["cut"]:
        terminal.print("[dim]What is older is left out.[/]")
    instances = len(story["answered"]) + len(story["unanswered"])
    terminal.print(_entry_table(story["entries"], several_instances=instances > 1))


def _entry_table(entries: list[dict[str, Any]], *, several_instances: bool) -> Table:
    """One line per decision; the instance and the model are named where there are several."""
    from rich.markup import escape

    where = ("INSTANCE",) if several_instances else ()
    drawn = table("WHEN", *where, "WHAT", "WHY")
    drawn.columns[-1].no_wrap = False
    several_models = len({entry["model"] for entry in entries}) > 1
    for entry in entries:
        subject = f"{escape(entry['model'])}: " if several_models else ""
        numbers = _numbers(entry["numbers"])
        drawn.add_row(
            time.strftime("%H:%M:%S", time.localtime(entry["at_unix_s"])),
            *((escape(entry["instance"]),) if where else ()),
            entry["did"],
            f"{subject}{escape(entry['reason'])}" + (f" [dim]{escape(numbers)}[/]" if numbers else ""),
        )
    return drawn


def _numbers(numbers: dict[str, Any]) -> str:
    """The numbers a decision was taken on: units are the last word of their names."""
    shown = []
    for name, value in numbers.items():
        what, _, unit = name.rpartition("_")
        if name.endswith("_per_s") and isinstance(value, int | float):
            shown.append(f"{name.removesuffix('_per_s').replace('_', ' ')} {value:.3g}/s")
            continue
        if unit == "bytes" and isinstance(value, int | float):
            shown.append(f"{what.replace('_', ' ')} {format_size(int(value))}")
        elif unit in ("s", "ms") and isinstance(value, int | float):
            shown.append(f"{what.replace('_', ' ')} {value:.3g} {unit}")
        else:
            shown.append(
                f"{name.replace('_', ' ')} {value:.4g}"
                if isinstance(value, float)
                else f"{name.replace('_', ' ')} {value}"
            )
    return f"({', '.join(shown)})" if shown else ""
