"""The scripted model server."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, cast

import grpc
import grpc.aio
from google.protobuf.struct_pb2 import Struct

from modelmesh.errors import Code
from modelmesh.testing.model_runtime.answers import INFER, id_in
from modelmesh.testing.model_runtime.script import FORGOTTEN, MIB, Call, Faults, Script
from modelmesh.wire.generated import inference_pb2, model_runtime_pb2

SERVICE: Final = "mmesh.ModelRuntime"
LEGACY_SERVICE: Final = "com.ibm.watson.tas.internal.proto.ModelServer"
_STATUS: Final = {status.value[0]: status for status in grpc.StatusCode}
_RESERVED: Final = ("user-agent", "grpc-", "te", "content-type")
Context = grpc.aio.ServicerContext[Any, Any]


class ModelRuntimeServer:
    """At `address`, "unix:/path" or "host:port" (port 0: any free one). One owner, one event loop.

    `scripts` are by model id, `default` is for all others; both may be changed while it runs. `methods` are what runtimeStatus
    lets in, with the path at which each wants the id in the message: then the id there is what counts.
    """

    def __init__(
        self,
        address: str,
        *,
        scripts: Mapping[str, Script] | None = None,
        default: Script | None = None,
        faults: Faults | None = None,
        capacity_bytes: int = 1024 * MIB,
        default_bytes: int = MIB,
        max_loads: int = 4,
        load_timeout_s: float = 10.0,
        methods: Mapping[str, Sequence[int]] | None = None,
        allow_any_method: bool = False,
        limits_concurrency: bool = False,
        service: str = SERVICE,
        serving_address: str = "",
    ) -> None:
        self.address = address
        self.serving_address = serving_address
        """Where inference is served, if not at `address`."""
        self.scripts = dict(scripts or {})
        self.default = default or Script()
        self.faults = faults or Faults()
        self.capacity_bytes = capacity_bytes
        self.default_bytes = default_bytes
        self.max_loads = max_loads
        self.load_timeout_s = load_timeout_s
        self.methods = dict(methods or {})
        self.allow_any_method = allow_any_method
        self.limits_concurrency = limits_concurrency
        self.service = service
        self.models: dict[str, Call] = {}
        """What is loaded, as it was asked for."""
        self.calls: list[Call] = []
        """Calls of the runtime's own service, in order."""
        self.asked = 0
        """Inference calls that came."""
        self.answers = 0
        """Those answered OK."""
        self.running: dict[str, int] = {}
        """Inference calls that run, by model."""
        self.most_running: dict[str, int] = {}
        """The most that ever ran at once."""
        self.starts = 0
        self.purges = 0
        self.loading: dict[str, asyncio.Task[Any] | None] = {}
        self.cancelled: list[str] = []
        """Loads that the mesh cancelled."""
        self.violations: list[str] = []
        """What a mesh must not do: too many loads at once, calls of one model that overlap, a load without an unload after one
        that failed."""
        self._residue: set[str] = set()
        self._unloading: set[str] = set()
        self._started_answers = 0
        self._servers: list[grpc.aio.Server] = []
        self._changing = asyncio.Lock()
        """Held while it starts or dies."""

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.die()

    async def start(self) -> None:
        """Serve, with nothing loaded. After `die` it is the same address again."""
        async with self._changing:
            await self._start()

    async def _start(self) -> None:
        self.starts += 1
        self._started_answers = 0
        self.models.clear()
        self._residue.clear()
        inference = _Inference(self)
        if self.serving_address:
            self.serving_address = await self._serve(self.serving_address, (inference,))
            self.address = await self._serve(self.address, (self._handlers(),))
        else:
            self.address = await self._serve(self.address, (self._handlers(), inference))

    async def _serve(self, address: str, handlers: Sequence[grpc.GenericRpcHandler]) -> str:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        server.add_generic_rpc_handlers(tuple(handlers))
        port = server.add_insecure_port(address)
        await server.start()
        self._servers.append(server)
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def die(self) -> None:
        """Break all connections and lose everything, as when the process is killed. Idempotent."""
        async with self._changing:
            servers, self._servers = self._servers, []
            self.models.clear()
            for server in servers:
                await server.stop(None)
            for address in (self.address, self.serving_address):
                if servers and address.startswith("unix:"):
                    _remove_socket(address)

    @property
    def alive(self) -> bool:
        return bool(self._servers)

    async def restart(self) -> None:
        await self.die()
        await self.start()

    # --- the script -----------------------------------------------------------------------------------------

    def forget(self, model: str) -> bool:
        """Lose a model silently. False when it is not loaded."""
        return self.models.pop(model, None) is not None

    def script(self, model: str) -> Script:
        return self.scripts.get(model, self.default)

    def made(self, method: str, model: str = "") -> list[Call]:
        """The calls of one method, about one model or all."""
        return [call for call in self.calls if call.method == method and model in ("", call.model)]

    @property
    def used_bytes(self) -> int:
        return sum(self.script(model).size_bytes for model in {*self.models, *self.loading, *self._unloading})

    # --- mmesh.ModelRuntime ---------------------------------------------------------------------------------

    def _handlers(self) -> grpc.GenericRpcHandler:
        wire = model_runtime_pb2
        methods: dict[str, tuple[Any, Any, Any]] = {
            "loadModel": (self._load, wire.LoadModelRequest, wire.LoadModelResponse),
            "unloadModel": (self._unload, wire.UnloadModelRequest, wire.UnloadModelResponse),
            "predictModelSize": (
                self._predict,
                wire.PredictModelSizeRequest,
                wire.PredictModelSizeResponse,
            ),
            "modelSize": (self._size, wire.ModelSizeRequest, wire.ModelSizeResponse),
            "runtimeStatus": (self._status, wire.RuntimeStatusRequest, wire.RuntimeStatusResponse),
        }
        return grpc.method_handlers_generic_handler(
            self.service,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    handle,
                    request_deserializer=request.FromString,
                    response_serializer=answer.SerializeToString,
                )
                for name, (handle, request, answer) in methods.items()
            },
        )

    async def _status(self, request: Any, context: Context) -> Any:
        self.calls.append(Call("runtimeStatus", ""))
        faults = self.faults
        if faults.status_error is not None:
            await _abort(context, faults.status_error)
        answer = model_runtime_pb2.RuntimeStatusResponse(
            status=cast(Any, faults.status),
            capacityInBytes=self.capacity_bytes,
            maxLoadingConcurrency=self.max_loads,
            modelLoadingTimeoutMs=round(self.load_timeout_s * 1000),
            defaultModelSizeInBytes=self.default_bytes,
            runtimeVersion="scripted",
            limitModelConcurrency=self.limits_concurrency,
            allowAnyMethod=self.allow_any_method,
        )
        for method, path in self.methods.items():
            answer.methodInfos[method].idInjectionPath.extend(path)
        self._started_answers += 1
        if self._started_answers <= faults.starting:
            answer.status = answer.STARTING
        elif not faults.keeps_models:
            self.purges += 1
            self.models.clear()
            self._residue.clear()
        return answer

    async def _load(self, request: model_runtime_pb2.LoadModelRequest, context: Context) -> Any:
        model, script = request.modelId, self.script(request.modelId)
        call = Call("loadModel", model, request.modelType, request.modelPath, request.modelKey)
        self.calls.append(call)
        self._watch_load(model)
        if self.faults.refuses_beyond_capacity and self.used_bytes + script.size_bytes > self.capacity_bytes:
            await _abort(context, (Code.RESOURCE_EXHAUSTED, f"no room for {model}"))
        self.loading[model] = asyncio.current_task()
        self._residue.add(model)
        try:
            await asyncio.sleep(script.load_s)
            if script.kills_server:
                dying = asyncio.ensure_future(self.die())
                await asyncio.shield(dying)
            if script.load_error is not None and script.failing_loads != 0:
                script.failing_loads -= 1
                await _abort(context, script.load_error)
        except asyncio.CancelledError:
            self.cancelled.append(model)
            raise
        finally:
            self.loading.pop(model, None)
        self._residue.discard(model)
        self.models[model] = call
        told_bytes = script.size_bytes if script.told_bytes is None else script.told_bytes
        return model_runtime_pb2.LoadModelResponse(
            sizeInBytes=told_bytes, maxConcurrency=script.max_concurrency
        )

    def _watch_load(self, model: str) -> None:
        if model in self.loading or model in self._unloading:
            self.violations.append(f"load of {model} during another call about it")
        if model in self._residue:
            self.violations.append(f"load of {model} without an unload after the one that failed")
        if len(self.loading) >= self.max_loads:
            self.violations.append(f"load of {model} beyond {self.max_loads} at a time")

    async def _unload(self, request: model_runtime_pb2.UnloadModelRequest, context: Context) -> Any:
        model, script = request.modelId, self.script(request.modelId)
        self.calls.append(Call("unloadModel", model))
        if model in self._unloading:
            self.violations.append(f"unload of {model} during another one")
        if (loading := self.loading.get(model)) is not None:
            loading.cancel()
            await asyncio.wait({loading})
        was_here = model in self.models
        self._unloading.add(model)
        try:
            await asyncio.sleep(script.unload_s)
            if script.unload_error is not None and script.failing_unloads != 0:
                script.failing_unloads -= 1
                await _abort(context, script.unload_error)
        finally:
            self._unloading.discard(model)
        self.models.pop(model, None)
        self._residue.discard(model)
        if not was_here and self.faults.unload_unknown is not Code.OK:
            await _abort(context, (self.faults.unload_unknown, f"{model} is not here"))
        return model_runtime_pb2.UnloadModelResponse()

    async def _predict(self, request: Any, context: Context) -> Any:
        self.calls.append(Call("predictModelSize", request.modelId))
        if not self.faults.predicts:
            await _abort(context, (Code.UNIMPLEMENTED, "sizes are not predicted"))
        await asyncio.sleep(self.faults.predict_s)
        script = self.script(request.modelId)
        predicted_bytes = script.size_bytes if script.predicted_bytes is None else script.predicted_bytes
        return model_runtime_pb2.PredictModelSizeResponse(sizeInBytes=predicted_bytes)

    async def _size(self, request: Any, context: Context) -> Any:
        model, script = request.modelId, self.script(request.modelId)
        self.calls.append(Call("modelSize", model))
        await asyncio.sleep(script.size_s)
        if script.size_error is not None:
            await _abort(context, script.size_error)
        if model not in self.models:
            await _abort(context, (Code.NOT_FOUND, f"{model} is not here"))
        sized_bytes = script.size_bytes if script.sized_bytes is None else script.sized_bytes
        return model_runtime_pb2.ModelSizeResponse(sizeInBytes=sized_bytes)

    # --- inference ------------------------------------------------------------------------------------------

    async def infer(self, method: str, body: bytes, context: Context) -> bytes:
        """Answer any method: for ModelInfer in its own form, else as a `google.protobuf.Struct` with one field per model, so that
        answers about several models merge."""
        self.asked += 1
        headers = _headers(context)
        path = self.methods.get(method)
        model = id_in(body, path) if path else headers.get("mm-model-id-bin", headers.get("mm-model-id", ""))
        script = self.script(model)
        if model not in self.models:
            code, text = FORGOTTEN[self.faults.forgotten]
            await _abort(context, (code, text.format(model)))
        await self._run(model, script.infer_s)
        if script.infer_error is not None:
            await _abort(context, script.infer_error)
        self.answers += 1
        told: dict[str, Any] = {
            "model": model,
            "method": method,
            "headers": headers,
            "body": base64.b64encode(body).decode(),
            "server": self.starts,
        }
        await context.send_initial_metadata((("runtime-header", model or "none"),))
        context.set_trailing_metadata((("runtime-trailer", "end"),))
        if method == INFER:
            request = inference_pb2.ModelInferRequest.FromString(body)
            answer = inference_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
            output = answer.outputs.add(name="told", datatype="BYTES", shape=[1])
            output.contents.bytes_contents.append(json.dumps(told).encode())
            return answer.SerializeToString()
        merged = Struct()
        merged.update({model: told})
        return merged.SerializeToString()

    async def _run(self, model: str, seconds: float) -> None:
        now = self.running[model] = self.running.get(model, 0) + 1
        self.most_running[model] = max(now, self.most_running.get(model, 0))
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running[model] -= 1


def _remove_socket(address: str) -> None:
    Path(address.removeprefix("unix:")).unlink(missing_ok=True)


class _Inference(grpc.GenericRpcHandler):
    """Every method that nobody else answers."""

    def __init__(self, server: ModelRuntimeServer) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        method = details.method.removeprefix("/")
        if method.startswith((f"{SERVICE}/", f"{LEGACY_SERVICE}/")):
            return None

        async def answer(body: bytes, context: Context) -> bytes:
            return await self._server.infer(method, body, context)

        return grpc.unary_unary_rpc_method_handler(cast(Any, answer))


def _headers(context: Context) -> dict[str, str]:
    pairs = [(str(key), value) for key, value in context.invocation_metadata() or ()]
    return {
        key: value.decode() if isinstance(value, bytes) else value
        for key, value in pairs
        if not key.startswith(_RESERVED)
    }


async def _abort(context: Context, error: tuple[Code, str]) -> None:
    code, text = error
    await context.abort(_STATUS[int(code)], text)
