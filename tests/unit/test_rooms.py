"""What the import linter cannot see: it does not know the compiled module."""

from __future__ import annotations

import ast
from pathlib import Path

import modelmesh

PACKAGE = Path(modelmesh.__file__).parent


def importers_of(module: str) -> set[str]:
    """The files of the package that import `modelmesh.<module>` anywhere, by path below the package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                {alias.name for alias in node.names}
                if isinstance(node, ast.Import | ast.ImportFrom)
                else set()
            )
            origin = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            full = {f"{origin}.{name}" if origin else name for name in names} | {origin}
            if any(name == f"modelmesh.{module}" or name.startswith(f"modelmesh.{module}.") for name in full):
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


def test_one_package_imports_the_native_module() -> None:
    assert {path.split("/")[0] for path in importers_of("_native")} == {"dataplane"}


def test_only_who_assembles_chooses_implementations() -> None:
    for module in ("runtime.builtin", "dataplane.relay", "store.sqlite"):
        rooms = {path.split("/")[0] for path in importers_of(module)}
        assert rooms <= {"instance", "adapter", "testing"}, module
