"""The five calls of `mmesh.ModelRuntime`, and the state of the connection they take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from modelmesh.errors import Code
from modelmesh.runtime.protocol import ModelSpec
from modelmesh.wire.generated import model_runtime_pb2 as wire

if TYPE_CHECKING:
    import grpc.aio

SERVICE: Final = "mmesh.ModelRuntime"
LEGACY_SERVICE: Final = "com.ibm.watson.tas.internal.proto.ModelServer"
_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
)
"""A connection of its own, and one that rests is no lost one."""


class CallFailed(Exception):
    """The server answered a call with a status, or there is no server. `text` is the server's own."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text


class Calls:
    """One connection to the server at `address` ("unix:/path" or "host:port"). Made on the event loop that uses it."""

    def __init__(self, address: str, service: str = SERVICE) -> None:
        import grpc.aio

        self.address = address
        self.service = service
        self._channel: grpc.aio.Channel = grpc.aio.insecure_channel(address, options=_OPTIONS)

    async def connect(self) -> None:
        """Return when connected. Raises CallFailed, UNAVAILABLE, when nobody listens."""
        import grpc

        ready, failure = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
        while (state := self._channel.get_state(try_to_connect=True)) is not ready:
            if state is failure:
                raise CallFailed(Code.UNAVAILABLE, "nobody listens there")
            await self._channel.wait_for_state_change(state)

    async def left(self) -> None:
        """Return when the connection that is up now is over, even if another one follows at once."""
        import grpc

        await self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)

    async def status(self, timeout_s: float) -> wire.RuntimeStatusResponse:
        """The server purges itself of all models before it says READY. Raises CallFailed, as all calls do."""
        request = wire.RuntimeStatusRequest()
        answer: wire.RuntimeStatusResponse = await self._call(
            "runtimeStatus", request, wire.RuntimeStatusResponse, timeout_s
        )
        return answer

    async def load(self, spec: ModelSpec) -> wire.LoadModelResponse:
        """Has no deadline on the wire: cancelling it cancels the call."""
        request = wire.LoadModelRequest(
            modelId=spec.id, modelType=spec.type, modelPath=spec.path, modelKey=spec.key
        )
        answer: wire.LoadModelResponse = await self._call("loadModel", request, wire.LoadModelResponse, None)
        return answer

    async def unload(self, model: str, timeout_s: float) -> None:
        """A model the server does not have is unloaded."""
        request = wire.UnloadModelRequest(modelId=model)
        try:
            await self._call("unloadModel", request, wire.UnloadModelResponse, timeout_s)
        except CallFailed as failed:
            if failed.code is not Code.NOT_FOUND:
                raise

    async def predict_size(self, spec: ModelSpec, timeout_s: float) -> int:
        request = wire.PredictModelSizeRequest(
            modelId=spec.id, modelType=spec.type, modelPath=spec.path, modelKey=spec.key
        )
        answer = await self._call("predictModelSize", request, wire.PredictModelSizeResponse, timeout_s)
        return int(answer.sizeInBytes)

    async def size(self, model: str, timeout_s: float) -> int:
        request = wire.ModelSizeRequest(modelId=model)
        answer = await self._call("modelSize", request, wire.ModelSizeResponse, timeout_s)
        return int(answer.sizeInBytes)

    async def close(self) -> None:
        """Cancels calls under way. Idempotent."""
        await self._channel.close()

    async def _call(self, method: str, request: Any, answer: type[Any], timeout_s: float | None) -> Any:
        import grpc.aio

        try:
            call = self._channel.unary_unary(
                f"/{self.service}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            return await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(Code(error.code().value[0]), error.details() or error.code().name) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise CallFailed(Code.CANCELLED, "the connection was closed") from None
        except grpc.aio.UsageError as error:
            raise CallFailed(Code.UNAVAILABLE, "the connection was closed") from error
