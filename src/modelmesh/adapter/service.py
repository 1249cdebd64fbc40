"""The five methods of `mmesh.ModelRuntime` over `Models`."""

from __future__ import annotations

from typing import Final

from modelmesh import __version__
from modelmesh.adapter.models import Models
from modelmesh.management.server import Context, Service, unary
from modelmesh.runtime.protocol import ModelSpec, RuntimeInfo
from modelmesh.wire.generated import model_runtime_pb2 as wire

NAME: Final = "mmesh.ModelRuntime"
LEGACY_NAME: Final = "com.ibm.watson.tas.internal.proto.ModelServer"
METHODS: Final = (
    "inference.GRPCInferenceService/ModelInfer",
    "inference.GRPCInferenceService/ModelMetadata",
)
"""What is served; workers take the id from the header, so messages need not carry it."""
_DEFAULT_BYTES: Final = 1 << 20


def services(models: Models, info: RuntimeInfo) -> list[Service]:
    """The service by both its names."""

    async def status(request: wire.RuntimeStatusRequest, context: Context) -> wire.RuntimeStatusResponse:
        await models.purge()
        answer = wire.RuntimeStatusResponse(
            status=wire.RuntimeStatusResponse.READY,
            capacityInBytes=models.capacity_bytes,
            maxLoadingConcurrency=info.max_loads,
            modelLoadingTimeoutMs=round(info.load_timeout_s * 1000),
            defaultModelSizeInBytes=_DEFAULT_BYTES,
            runtimeVersion=__version__,
        )
        for method in METHODS:
            answer.methodInfos[method].SetInParent()
        return answer

    async def load(request: wire.LoadModelRequest, context: Context) -> wire.LoadModelResponse:
        resident = await models.load(_spec(request))
        size_bytes = resident.size_bytes if resident.measured.is_set() else 0
        return wire.LoadModelResponse(sizeInBytes=size_bytes)

    async def unload(request: wire.UnloadModelRequest, context: Context) -> wire.UnloadModelResponse:
        await models.unload(request.modelId)
        return wire.UnloadModelResponse()

    async def predict(
        request: wire.PredictModelSizeRequest, context: Context
    ) -> wire.PredictModelSizeResponse:
        estimate = await models.predict(_spec(request))
        return wire.PredictModelSizeResponse(sizeInBytes=estimate.size_bytes)

    async def size(request: wire.ModelSizeRequest, context: Context) -> wire.ModelSizeResponse:
        return wire.ModelSizeResponse(sizeInBytes=await models.size(request.modelId))

    methods = {
        "runtimeStatus": unary(status, wire.RuntimeStatusRequest, wire.RuntimeStatusResponse),
        "loadModel": unary(load, wire.LoadModelRequest, wire.LoadModelResponse),
        "unloadModel": unary(unload, wire.UnloadModelRequest, wire.UnloadModelResponse),
        "predictModelSize": unary(predict, wire.PredictModelSizeRequest, wire.PredictModelSizeResponse),
        "modelSize": unary(size, wire.ModelSizeRequest, wire.ModelSizeResponse),
    }
    return [Service(NAME, methods), Service(LEGACY_NAME, methods)]


def _spec(request: wire.LoadModelRequest | wire.PredictModelSizeRequest) -> ModelSpec:
    return ModelSpec(request.modelId, request.modelType, request.modelPath, request.modelKey)
