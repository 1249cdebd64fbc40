"""The commands of `modelmesh`, and how each ends: a sentence on stderr and an exit code, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from modelmesh import __version__
from modelmesh.cli.exits import CommandFailed, Exit

if TYPE_CHECKING:
    import typer

COMMANDS = {
    "serve": "serve:serve",
    "list": "models:list_models",
    "status": "instances:status",
    "instances": "instances:instances",
    "load": "models:load",
    "unload": "models:unload",
    "register": "register:register",
    "unregister": "models:unregister",
    "infer": "infer:infer",
    "vmodel": "vmodel:app",
    "explain": "explain:explain",
    "top": "top:top",
    "config": "config:app",
    "cordon": "instances:cordon",
    "uncordon": "instances:uncordon",
    "drain": "instances:drain",
    "adapter": "adapter:app",
    "migrate": "migrate:migrate",
    "simulate": "simulate:simulate",
}
"""Command → module and function. Only the modules of the command that is run are imported."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Ends the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["serve"]:
            _imported(COMMANDS["serve"])(arguments[1:])
            sys.exit(Exit.OK)
        build(arguments[0] if arguments and arguments[0] in COMMANDS else None)(
            arguments, prog_name="modelmesh"
        )
    except CommandFailed as failure:
        sys.stderr.write(f"{failure}\n")
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(Exit.OK)


def build(chosen: str | None = None) -> typer.Typer:
    """The application of all commands; with `chosen`, only that one is in it, so that no other's libraries are imported."""
    import typer

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Serve far more models than fit in memory, behind one endpoint.",
    )

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", help="Print the version.", is_eager=True, callback=_version
        ),
    ) -> None:
        pass

    for command, place in COMMANDS.items():
        if chosen not in (None, command):
            continue
        target = _imported(place)
        if command == "serve":
            app.command(command, help=_imported("serve:SAYS"))(_serve)
        elif isinstance(target, typer.Typer):
            app.add_typer(target, name=command)
        else:
            app.command(command)(target)
    return app


def _serve() -> None:
    """In the list of commands only: `main` runs `serve` itself."""


def _version(on: bool) -> None:
    if on:
        import typer

        sys.stdout.write(f"modelmesh {__version__}\n")
        raise typer.Exit


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    found: Callable[..., Any] | typer.Typer | str = getattr(import_module(f"modelmesh.cli.{module}"), name)
    return found
