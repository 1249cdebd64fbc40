"""`_native.pyi` says what the compiled module has: the same names, and the same signatures."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import modelmesh
from modelmesh import _native

STUB = ast.parse((Path(modelmesh.__file__).parent / "_native.pyi").read_text())
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}


def stub_methods(cls: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in CLASSES[cls].body if isinstance(node, ast.FunctionDef)}


def is_property(method: ast.FunctionDef) -> bool:
    return any(
        isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in method.decorator_list
    )


METHODS = [
    (cls, name) for cls in CLASSES for name, method in stub_methods(cls).items() if not is_property(method)
]


def stub_signature(method: ast.FunctionDef) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each parameter but self."""
    arguments = method.args
    positional = arguments.args[1:]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    parameters: list[tuple[str, Any, Any]] = []
    for argument, default in zip(positional, defaults, strict=True):
        parameters.append((argument.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, literal(default)))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append((argument.arg, inspect.Parameter.KEYWORD_ONLY, literal(default)))
    return parameters


def literal(default: ast.expr | None) -> Any:
    return inspect.Parameter.empty if default is None else ast.literal_eval(default)


def compiled_signature(cls: str, name: str) -> list[tuple[str, Any, Any]]:
    native = getattr(_native, cls)
    signature = inspect.signature(native if name == "__init__" else getattr(native, name))
    return [(p.name, p.kind, p.default) for p in signature.parameters.values() if p.name != "self"]


def public(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_the_same_top_level_names() -> None:
    assert public(dir(_native)) == CLASSES.keys()


@pytest.mark.parametrize("cls", CLASSES)
def test_the_same_attributes(cls: str) -> None:
    assert public(list(vars(getattr(_native, cls)))) == public(list(stub_methods(cls)))


@pytest.mark.parametrize(("cls", "name"), METHODS)
def test_the_same_signature(cls: str, name: str) -> None:
    assert compiled_signature(cls, name) == stub_signature(stub_methods(cls)[name])


@pytest.mark.parametrize("cls", CLASSES)
def test_properties_are_properties(cls: str) -> None:
    for name, method in stub_methods(cls).items():
        assert inspect.isgetsetdescriptor(
            inspect.getattr_static(getattr(_native, cls), name, None)
        ) == is_property(method)


def test_what_the_stub_says_can_only_be_had_from_the_module_can() -> None:
    """A class without a constructor in the stub has none in the module."""
    for cls in CLASSES:
        if "__init__" not in stub_methods(cls):
            with pytest.raises(TypeError):
                getattr(_native, cls)()
