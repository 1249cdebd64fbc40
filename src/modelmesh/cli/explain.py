"""`explain`: what happened to a model, and why, as a story."""

from __future__ import annotations

import time
from typing import Any

from modelmesh.cli.client import Client, at
from modelmesh.cli.models import Name
from modelmesh.cli.options import DEFAULT_OPS, Json, Ops, console, print_json, table
from modelmesh.settings.sizes import format_size


def explain(name: Name, ops: Ops = DEFAULT_OPS, as_json: Json = False) -> None:
    """Tell what happened to a model, or to requests for it, and why."""
    with Client(ops) as client:
        story = client.get(at("explain", name))
    if as_json:
        print_json(story)
        return
    from rich.markup import escape

    terminal = console()
    terminal.print(story["now"], markup=False)
    if not story["entries"]:
        terminal.print("[dim]The journal remembers nothing of it.[/]")
        return
    drawn = table("WHEN", "WHAT", "WHY")
    drawn.columns[2].no_wrap = False
    several = len({entry["model"] for entry in story["entries"]}) > 1
    for entry in story["entries"]:
        subject = f"{escape(entry['model'])}: " if several else ""
        numbers = _numbers(entry["numbers"])
        drawn.add_row(
            time.strftime("%H:%M:%S", time.localtime(entry["at_unix_s"])),
            entry["did"],
            f"{subject}{escape(entry['reason'])}" + (f" [dim]{escape(numbers)}[/]" if numbers else ""),
        )
    terminal.print()
    terminal.print(drawn)


def _numbers(numbers: dict[str, Any]) -> str:
    """The numbers a decision was taken on: units are the last word of their names."""
    shown = []
    for name, value in numbers.items():
        what, _, unit = name.rpartition("_")
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
