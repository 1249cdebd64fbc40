"""The control half of `inference.GRPCInferenceService`: server health and metadata, ModelReady, the repository calls.

ModelInfer and ModelMetadata never come here: the data plane relays them to the model servers.
"""

from __future__ import annotations

import asyncio
from typing import Final

from modelmesh import __version__
from modelmesh.errors import InvalidInput
from modelmesh.management.server import Context, Service, remaining_s, unary
from modelmesh.mesh.control import ControlPlane, Query
from modelmesh.mesh.views import ModelView, State
from modelmesh.wire.generated import inference_pb2 as pb

NAME: Final = "inference.GRPCInferenceService"
EXTENSIONS: Final = ("model_repository",)
_PAGE: Final = 500
_NAME_HEADERS: Final = ("mm-vmodel-id", "mm-model-id")

_READY, _UNAVAILABLE, _LOADING, _UNLOADING = "READY", "UNAVAILABLE", "LOADING", "UNLOADING"
"""The states of the repository extension (https://github.com/triton-inference-server/server, protocol documents)."""


class InferenceControl:
    """The calls, by their names in the protocol."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        view = self._control.instance()
        return pb.ServerReadyResponse(ready=view.ready and not view.draining)

    async def server_metadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="modelmesh", version=__version__, extensions=EXTENSIONS)

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """True when it can be served; a cold model can, and is not loaded by this."""
        headers = dict(context.invocation_metadata() or ())
        name = next((str(headers[header]) for header in _NAME_HEADERS if header in headers), request.name)
        if not name:
            raise InvalidInput("The request names no model.")
        return pb.ModelReadyResponse(ready=self._control.servable(name, request.version))

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """One row per name of a model (a vmodel "name:N" is version N of "name"); unnamed models under their id."""
        response = pb.RepositoryIndexResponse()
        state = State.LOADED if request.ready else None
        after, more = "", True
        while more:
            page = await self._control.models(Query(state=state, after=after, limit=_PAGE))
            for view in page.models:
                for name in view.names or (view.id,):
                    bare, _, version = name.rpartition(":") if name in view.names else ("", "", "")
                    versioned = bool(bare) and version.isdigit()
                    response.models.add(
                        name=bare if versioned else name,
                        version=version if versioned else "",
                        state=_state(view),
                        reason=_reason(view),
                    )
            after, more = page.next_after, bool(page.next_after)
            await asyncio.sleep(0)
        return response

    async def load(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        _require_plain(dict(request.parameters), request.model_name)
        await self._control.load(request.model_name, timeout_s=remaining_s(context))
        return pb.RepositoryModelLoadResponse()

    async def unload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        await self._control.unload(request.model_name, timeout_s=remaining_s(context))
        return pb.RepositoryModelUnloadResponse()


def service(control: ControlPlane) -> Service:
    calls = InferenceControl(control)
    return Service(
        NAME,
        {
            "ServerLive": unary(calls.server_live, pb.ServerLiveRequest, pb.ServerLiveResponse),
            "ServerReady": unary(calls.server_ready, pb.ServerReadyRequest, pb.ServerReadyResponse),
            "ServerMetadata": unary(
                calls.server_metadata, pb.ServerMetadataRequest, pb.ServerMetadataResponse
            ),
            "ModelReady": unary(calls.model_ready, pb.ModelReadyRequest, pb.ModelReadyResponse),
            "RepositoryIndex": unary(
                calls.repository_index, pb.RepositoryIndexRequest, pb.RepositoryIndexResponse
            ),
            "RepositoryModelLoad": unary(
                calls.load, pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse
            ),
            "RepositoryModelUnload": unary(
                calls.unload, pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse
            ),
        },
    )


def _require_plain(parameters: dict[str, object], model: str) -> None:
    """Triton's way to pass a configuration or files along is refused rather than ignored."""
    refused = sorted(name for name in parameters if name == "config" or name.startswith("file:"))
    if refused:
        raise InvalidInput(
            f'The parameter "{refused[0]}" is not offered: a model is loaded as it is registered.',
            model=model,
        )


def _state(view: ModelView) -> str:
    return {
        State.LOADED: _READY,
        State.LOADING: _LOADING,
        State.QUEUED: _LOADING,
        State.UNLOADING: _UNLOADING,
    }.get(view.state, _UNAVAILABLE)


def _reason(view: ModelView) -> str:
    if view.failure:
        return view.failure.reason
    return "not loaded; the next request loads it" if view.state is State.COLD else ""
