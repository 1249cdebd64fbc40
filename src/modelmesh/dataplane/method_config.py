"""The data-plane config in the predecessor's JSON (reference mesh.md 1.4): which methods are let in, and where each one's
request message names the model."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

from modelmesh.dataplane.protocol import MethodRule
from modelmesh.errors import SettingsError

_METHOD: Final = re.compile(r"[^/\s]+/[^/\s]+")
_FIELD_NUMBER_MAX: Final = 2**29 - 1
"""https://protobuf.dev/programming-guides/proto3/#assigning"""
_PATH_DEPTH_MAX: Final = 16
"""What the relay follows (rust/inference, PATH_DEPTH_MAX)."""


class MethodConfig(NamedTuple):
    """Arguments of `DataPlane.set_method_rules`."""

    rules: tuple[MethodRule, ...]
    allow_others: bool


def parse_method_config(text: str, source: str) -> MethodConfig:
    """Raises SettingsError with a sentence that names `source` and the bad entry. Unknown properties are errors: a misspelt one
    would let in, or keep out, what was not meant."""
    try:
        document = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{source} is not JSON: {error}.") from error
    found = _properties(
        document, {"rpcConfigs": dict, "allowOtherRpcs": bool}, f"{source}: the data-plane config"
    )
    rules = tuple(_rule(method, entry, source) for method, entry in (found.get("rpcConfigs") or {}).items())
    return MethodConfig(rules, bool(found.get("allowOtherRpcs")))


def _rule(method: str, entry: object, source: str) -> MethodRule:
    where = f'{source}: the entry "{method}" of rpcConfigs'
    if not _METHOD.fullmatch(method):
        raise SettingsError(f"{where} is no full method name; write package.Service/Method.")
    found = _properties(entry, {"idExtractionPath": list, "vModelId": bool}, where)
    path = found.get("idExtractionPath") or []
    if len(path) > _PATH_DEPTH_MAX or not all(map(_is_field_number, path)):
        raise SettingsError(
            f"{where}: idExtractionPath is {json.dumps(path)}; it lists up to {_PATH_DEPTH_MAX} field numbers, "
            f"each from 1 to {_FIELD_NUMBER_MAX}."
        )
    return MethodRule(method, tuple(path), bool(found.get("vModelId")))


def _is_field_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _FIELD_NUMBER_MAX


_SAID: Final = {dict: "an object", list: "a list of field numbers", bool: "true or false"}


def _properties(value: object, known: dict[str, type], where: str) -> dict[str, Any]:
    """The properties of an object, each null or of its type."""
    if not isinstance(value, dict):
        raise SettingsError(f"{where} is {json.dumps(value)}; it has to be an object.")
    for name, of in value.items():
        if name not in known:
            raise SettingsError(
                f'{where} has a property "{name}", which is unknown; known are {", ".join(known)}.'
            )
        if of is not None and not isinstance(of, known[name]):
            raise SettingsError(f"{where}: {name} is {json.dumps(of)}; it has to be {_SAID[known[name]]}.")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twice}" is there twice')
    return found
