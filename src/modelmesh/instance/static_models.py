"""Models that are registered, and some of them loaded, at every start: the predecessor's JSON (reference mesh.md 9.3).

    [{"modelId": "iris-7", "modelInfo": {"type": "sklearn", "path": "iris", "key": ""}, "vModelId": "iris",
      "retainAfterTransition": false, "ensureLoaded": true}]

`vModelId` points at the model from then on; unless it is retained, the model goes when the vmodel leaves it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelmesh.clock import Clock
from modelmesh.errors import FailedPrecondition, ModelMeshError, SettingsError
from modelmesh.mesh.control import Admit, ControlPlane, Registration
from modelmesh.settings.files import read_text
from modelmesh.settings.tree import Models

_USED_AGO_MS: Final = 365 * 24 * 3_600_000
"""What is loaded at the start is the first to go when memory is short: nobody has asked for it yet."""


@dataclass(frozen=True, slots=True)
class StaticModel:
    """One entry. Without a vmodel `retain` means nothing."""

    model: Registration
    vmodel: str = ""
    retain: bool = False
    load: bool = False


def read_static_models(settings: Models) -> list[StaticModel]:
    """Those of the file, then those given inline. Raises SettingsError naming the setting and the entry."""
    found: list[StaticModel] = []
    if settings.static_models_path is not None:
        found += _parsed(
            read_text(settings.static_models_path, "static_models_path"),
            f"static_models_path: {settings.static_models_path}",
        )
    if settings.static_models is not None:
        found += _parsed(settings.static_models, "static_models")
    return found


async def register_static_models(
    control: ControlPlane,
    models: Sequence[StaticModel],
    admit: Admit,
    clock: Clock,
) -> None:
    """Register them in order, then wait until those that are to be loaded are. The first that cannot be raises
    FailedPrecondition, which is to end the start."""
    for static in models:
        try:
            model = await asyncio.to_thread(admit, static.model)
            if static.vmodel:
                await control.set_vmodel(
                    static.vmodel, model.id, model=model, auto_delete_target=not static.retain
                )
            else:
                await control.register(model)
        except ModelMeshError as error:
            raise _given_up(static, "registered", error) from error
    used_ms = round(clock.wall_s() * 1000) - _USED_AGO_MS
    loaded = [static for static in models if static.load]
    for sync in (False, True):  # all loads are begun before one is waited for
        for static in loaded:
            try:
                view = await control.ensure(static.model.id, last_used_ms=used_ms, sync=sync)
            except ModelMeshError as error:
                raise _given_up(static, "loaded", error) from error
            if view.failure is not None:
                raise _given_up(static, "loaded", view.failure.reason)


def _given_up(static: StaticModel, what: str, why: object) -> FailedPrecondition:
    return FailedPrecondition(
        f"The start is given up, because model {static.model.id} is to be {what} before anything else, and cannot be: {why}",
        model=static.model.id,
    )


def _parsed(text: str, source: str) -> list[StaticModel]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{source} is not JSON: {error}.") from error
    if not isinstance(entries, list):
        raise SettingsError(f"{source} is not a list of models.")
    return [_entry(entry, f"{source}, entry {number}") for number, entry in enumerate(entries, 1)]


def _entry(entry: Any, source: str) -> StaticModel:
    if not isinstance(entry, dict):
        raise SettingsError(f"{source} is not an object.")
    info = entry.get("modelInfo")
    if not isinstance(info, dict):
        raise SettingsError(f'{source} needs a "modelInfo" with at least a "type".')
    vmodel = _text(entry, "vModelId", source)
    if "retainAfterTransition" in entry and not vmodel:
        raise SettingsError(f'{source}: "retainAfterTransition" means nothing without a "vModelId".')
    return StaticModel(
        Registration(
            id=_text(entry, "modelId", source, needed=True),
            type=_text(info, "type", source, needed=True),
            path=_text(info, "path", source),
            key=_text(info, "key", source),
        ),
        vmodel,
        _flag(entry, "retainAfterTransition", source),
        _flag(entry, "ensureLoaded", source),
    )


def _text(of: dict[str, Any], name: str, source: str, *, needed: bool = False) -> str:
    value = of.get(name)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise SettingsError(f'{source}: "{name}" is not a text.')
    if needed and not value.strip():
        raise SettingsError(f'{source} needs a "{name}".')
    return value


def _flag(of: dict[str, Any], name: str, source: str) -> bool:
    value = of.get(name, False)
    if not isinstance(value, bool):
        raise SettingsError(f'{source}: "{name}" is neither true nor false.')
    return value
