"""What the import linter cannot see: it does not know the compiled module."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import modelmesh

PACKAGE = Path(modelmesh.__file__).parent


@cache
def imports() -> dict[str, set[str]]:
    """What each file of the package imports anywhere, by path below the package."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        names = found[path.relative_to(PACKAGE).as_posix()] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return found


def importers_of(module: str) -> set[str]:
    """The files that import `modelmesh.<module>` or what is in it."""
    wanted = f"modelmesh.{module}"
    return {
        path
        for path, names in imports().items()
        if any(f"{name}.".startswith(f"{wanted}.") for name in names)
    }


def test_one_package_imports_the_native_module() -> None:
    assert {path.split("/")[0] for path in importers_of("_native")} == {"dataplane"}


def test_only_who_assembles_chooses_implementations() -> None:
    for module in ("runtime.builtin", "dataplane.relay", "store.sqlite"):
        rooms = {path.split("/")[0] for path in importers_of(module)}
        assert rooms <= {"instance", "adapter", "testing"}, module
