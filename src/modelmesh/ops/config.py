"""The part of the admin API that is about settings that change while instances run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from modelmesh.instance.live_settings import LiveValue
from modelmesh.ops.answers import answer, path_id
from modelmesh.ops.bodies import read_body
from modelmesh.ops.operations import Operation
from modelmesh.ops.parts import Parts
from modelmesh.ops.schemas import Answer, Body


class LiveSetting(Answer):
    """A setting that can be changed while instances run, as it stands in the one that answers."""

    name: str
    says: str
    value: str = Field(description="In force, as a user would write it; empty: none.")
    started: str = Field(description="What this instance was started with.")
    stored: str | None = Field(description="What the store says, for all instances; null: nothing.")
    problem: str = Field(description="Why what is stored is not in force, else empty.")

    @classmethod
    def of(cls, value: LiveValue) -> LiveSetting:
        return cls.model_construct(**{name: getattr(value, name) for name in cls.model_fields})


class Config(Answer):
    """All of them, by name."""

    settings: Sequence[LiveSetting]
    without_effect: Mapping[str, str] = Field(
        description="Other names in the store, and why they change nothing here."
    )


class SetConfig(Body):
    """A value, for all instances of the mesh."""

    value: str = Field(description="As it would be written on the command line.")


class Configs:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._live = parts.live

    def operations(self) -> tuple[Operation, ...]:
        """In the order of the docs page."""
        return (
            Operation(
                "GET", "/config", "Settings that can be changed while instances run", self.list_config, Config
            ),
            Operation("GET", "/config/{id}", "One of them", self.get_config, LiveSetting),
            Operation(
                "PUT",
                "/config/{id}",
                "Change it in all instances of the mesh",
                self.set_config,
                LiveSetting,
                SetConfig,
            ),
            Operation(
                "DELETE", "/config/{id}", "Have what each instance was started with again", self.unset_config
            ),
        )

    async def list_config(self, request: Request) -> Response:
        return answer(
            Config.model_construct(
                settings=[LiveSetting.of(value) for value in self._live.all()],
                without_effect=self._live.without_effect(),
            )
        )

    async def get_config(self, request: Request) -> Response:
        return answer(LiveSetting.of(self._live.get(path_id(request))))

    async def set_config(self, request: Request) -> Response:
        body = await read_body(request, SetConfig)
        return answer(LiveSetting.of(await self._live.set(path_id(request), body.value)))

    async def unset_config(self, request: Request) -> Response:
        await self._live.unset(path_id(request))
        return Response(status_code=204)
