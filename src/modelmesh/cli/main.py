"""The commands of `modelmesh`, and how each ends: a sentence on stderr and an exit code, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer

from modelmesh import __version__
from modelmesh.cli.exits import CommandFailed, Exit

COMMANDS = {
    "serve": "serve:serve",
    "list": "models:list_models",
    "status": "models:status",
    "load": "models:load",
    "unload": "models:unload",
    "register": "register:register",
    "unregister": "models:unregister",
    "infer": "infer:infer",
    "vmodel": "vmodel:app",
    "explain": "explain:explain",
    "top": "top:top",
}
"""Command → module and function. Only the modules of the command that is run are imported."""


def build(chosen: str | None = None) -> typer.Typer:
    """The application; with `chosen`, only that command is in it (so that `serve` imports no HTTP client)."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Serve far more models than fit in memory, behind one endpoint.",
    )
    app.callback()(_root)
    for command, place in COMMANDS.items():
        if chosen in (None, command):
            target = _imported(place)
            if isinstance(target, typer.Typer):
                app.add_typer(target, name=command)
            else:
                app.command(command)(target)
    return app


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Ends the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    try:
        build(chosen)(arguments, prog_name="modelmesh")
    except CommandFailed as failure:
        sys.stderr.write(f"{failure}\n")
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(Exit.OK)


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", is_eager=True, callback=lambda on: _version(on)
    ),
) -> None:
    pass


def _version(on: bool) -> None:
    if on:
        sys.stdout.write(f"modelmesh {__version__}\n")
        raise typer.Exit


def _imported(place: str) -> Callable[..., Any] | typer.Typer:
    module, _, name = place.partition(":")
    found: Callable[..., Any] | typer.Typer = getattr(import_module(f"modelmesh.cli.{module}"), name)
    return found
