"""How a command can end. Documented in `docs/cli.md`; stable."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `modelmesh`."""

    OK = 0
    REFUSED = 1
    """The instance answered with an error; the sentence on stderr is its own."""
    USAGE = 2
    """The command line is wrong."""
    NO_INSTANCE = 3
    """Nothing answers at the ops URL, or at the store of `migrate`, or not in time."""
    NOT_STARTED = 4
    """`serve` could not start: a wrong setting, a taken port, a state in use."""
    PARTLY = 5
    """`register --from`: some lines were refused; they are named on stderr."""
    CRASHED = 6
    """A bug of ours ended `serve`; the log tells which."""


class CommandFailed(Exception):
    """Ends a command with a sentence and an exit code."""

    def __init__(self, sentence: str, exit_code: Exit) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
