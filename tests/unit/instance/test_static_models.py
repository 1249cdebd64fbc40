"""Models registered at the start: the JSON, what is registered in which order, and what ends the start."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from modelmesh.errors import FailedPrecondition, SettingsError
from modelmesh.instance.static_models import StaticModel, read_static_models, register_static_models
from modelmesh.mesh.control import Registration
from modelmesh.mesh.views import State
from modelmesh.settings.sources import read_settings
from modelmesh.testing.control import FakeControlPlane


def read(*entries: object, **flags: object) -> list[StaticModel]:
    text = json.dumps(list(entries)) if entries else None
    return read_static_models(read_settings({"static_models": text, "state": "memory", **flags}, {}).models)


def entry(id: str = "a", **more: Any) -> dict[str, Any]:
    return {"modelId": id, "modelInfo": {"type": "sklearn", "path": id}, **more}


async def register(control: FakeControlPlane, models: list[StaticModel]) -> None:
    await register_static_models(control, models, lambda model: model, control.clock)


def test_the_file_comes_first_and_what_is_unknown_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    file.write_text(json.dumps([entry("f", ensureLoaded=True, colour="blue")]))
    vmodel = entry("a", vModelId="v", retainAfterTransition=True)
    vmodel["modelInfo"] |= {"key": "k", "weight": 3}
    assert read(vmodel, static_models_path=str(file)) == [
        StaticModel(Registration("f", "sklearn", "f"), load=True),
        StaticModel(Registration("a", "sklearn", "a", "k"), "v", retain=True),
    ]
    assert read() == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "static_models is not JSON"),
        ("{}", "static_models is not a list"),
        ("[3]", "entry 1 is not an object"),
        ('[{"modelId": "a"}]', 'entry 1 needs a "modelInfo"'),
        ('[{"modelInfo": {"type": "x"}}]', 'entry 1 needs a "modelId"'),
        ('[{"modelId": "a", "modelInfo": {"type": " "}}]', 'entry 1 needs a "type"'),
        ('[{"modelId": 3, "modelInfo": {"type": "x"}}]', '"modelId" is not a text'),
        ('[{"modelId": "a", "modelInfo": {"type": "x"}, "ensureLoaded": 1}]', '"ensureLoaded" is neither'),
        (
            '[{"modelId": "a", "modelInfo": {"type": "x"}, "retainAfterTransition": true}]',
            "means nothing without",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        read(static_models=text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"static_models_path: .*none\.json cannot be read"):
        read(static_models_path=str(tmp_path / "none.json"))


def test_a_read_only_registry_serves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="read_only: serving a folder"):
        read_settings({"folder": tmp_path, "read_only": "true"}, {})


def test_they_are_registered_and_loaded_at_every_start() -> None:
    async def main() -> None:
        control = FakeControlPlane()
        models = read(entry("a", ensureLoaded=True), entry("b", vModelId="v"))
        for _ in range(2):
            await register(control, models)
        states = {id: view.state for id, view in control.registered.items()}
        assert states == {"a": State.LOADED, "b": State.COLD}
        assert control.loads_total == 1
        assert control.names["v"].active == "b"

    asyncio.run(main())


def test_what_cannot_be_had_ends_the_start() -> None:
    async def main() -> None:
        control = FakeControlPlane()
        control.broken["b"] = "The file is torn."
        with pytest.raises(FailedPrecondition, match=r"model b is to be loaded .* The file is torn\."):
            await register(control, read(entry("a"), entry("b", ensureLoaded=True)))
        with pytest.raises(FailedPrecondition, match="model a is to be registered"):
            await register(control, [StaticModel(Registration("a", "onnx"))])

    asyncio.run(main())
