"""`config`: settings that change while instances run, in all instances of the mesh."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from modelmesh.cli.client import Client, at
from modelmesh.cli.options import DEFAULT_OPS, Json, Ops, coloured, console, file_text, laid_out, print_json

app = typer.Typer(
    no_args_is_help=True, help="Settings that change while instances run, in all instances of the mesh."
)

_WIDE = 60
"""Characters of a value in a table."""
Name = Annotated[str, typer.Argument(help="The setting, as in docs/settings.md.", metavar="NAME")]


@app.command("list")
def list_config(ops: Ops = DEFAULT_OPS, as_json: Json = False) -> None:
    """What can be changed, and what is in force."""
    with Client(ops) as client:
        config = client.get("/config")
    if as_json:
        print_json(config)
        return
    terminal = console()
    terminal.print(laid_out([_row(setting) for setting in config["settings"]], spare=("AT THE START",)))
    for setting in config["settings"]:
        if setting["problem"]:
            terminal.print(
                f"What the store says is not used. {setting['problem']}", markup=False, style="red"
            )
    for name, why in config["without_effect"].items():
        terminal.print(f"{name} in the store has no effect: {why}.", markup=False)


@app.command("get")
def get_config(name: Name, ops: Ops = DEFAULT_OPS, as_json: Json = False) -> None:
    """Print the value that is in force."""
    with Client(ops) as client:
        setting = client.get(at("config", name))
    if as_json:
        print_json(setting)
    else:
        console().print(setting["value"], markup=False)


@app.command("set")
def set_config(
    name: Name,
    value: Annotated[
        str,
        typer.Argument(help="As on the command line of serve; @FILE: what is in a file.", metavar="VALUE"),
    ],
    ops: Ops = DEFAULT_OPS,
    as_json: Json = False,
) -> None:
    """Change a setting in all instances, until it is changed again or unset; new instances take it over."""
    with Client(ops) as client:
        setting = client.put(at("config", name), {"value": _read(value)})
    if as_json:
        print_json(setting)
    else:
        console().print(f"{name} is {_short(setting['value'])} now, in all instances.", markup=False)


@app.command("unset")
def unset_config(name: Name, ops: Ops = DEFAULT_OPS) -> None:
    """Have what each instance was started with in force again."""
    with Client(ops) as client:
        client.delete(at("config", name))
    console().print(
        f"The store says nothing of {name} now; what each instance was started with counts.", markup=False
    )


def _row(setting: dict[str, Any]) -> dict[str, Any]:
    unused = bool(setting["problem"])
    source = "start" if setting["stored"] is None else "store, not used" if unused else "store"
    return {
        "NAME": setting["name"],
        "VALUE": _short(setting["value"]) or "-",
        "FROM": coloured(source, "red" if unused else ""),
        "AT THE START": _short(setting["started"]) or "-",
    }


def _short(text: str) -> str:
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 1]}…"


def _read(value: str) -> str:
    return file_text(value[1:]) if value.startswith("@") else value
