"""A model server with a thread that runs its models, and a gRPC client for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from modelmesh.dataplane.model_server import DATATYPES, DTYPES, Array, Batch, ModelServer
from modelmesh.wire.generated import inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
TIMEOUT_S = 20.0

Spec = tuple[str, str, Sequence[int]]
Model = Callable[[Batch], object]


class Client:
    """Calls by method name; requests are messages, or bytes sent as they are."""

    def __init__(self, socket: Path) -> None:
        # gRPC's default authority of a unix socket is its escaped path, which is no valid authority (RFC 3986 3.2).
        options = [("grpc.default_authority", "worker"), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=options)

    def call(self, method: str, request: Any, **metadata: str | bytes) -> Any:
        return self.with_call(method, request, **metadata)[0]

    def with_call(self, method: str, request: Any, **metadata: str | bytes) -> tuple[Any, grpc.Call]:
        response, call = self._stub(method).with_call(
            request, timeout=TIMEOUT_S, metadata=_metadata(metadata)
        )
        return response, call

    def start(self, request: pb.ModelInferRequest, timeout_s: float | None = TIMEOUT_S) -> Any:
        """ModelInfer as a future."""
        return self._stub("ModelInfer").future(request, timeout=timeout_s)

    def fails(self, method: str, request: Any, **metadata: str | bytes) -> grpc.RpcError:
        try:
            self.call(method, request, **metadata)
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{method} did not fail")

    def _stub(self, method: str) -> Any:
        response = getattr(pb, f"{method}Response", pb.ServerLiveResponse)
        return self.channel.unary_unary(
            SERVICE + method,
            request_serializer=lambda request: (
                request if isinstance(request, bytes) else request.SerializeToString()
            ),
            response_deserializer=response.FromString,
        )


def _metadata(entries: Mapping[str, str | bytes]) -> list[tuple[str, str | bytes]]:
    return [(name.replace("_", "-"), value) for name, value in entries.items()]


def trailer(call: Any, key: str) -> str | None:
    return dict(call.trailing_metadata()).get(key)


def infer_request(
    model: str, inputs: Mapping[str, Array], *, raw: bool = True, outputs: Sequence[str] = (), id: str = ""
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=id)
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, shape=array.shape)
        tensor.datatype = "BYTES" if array.dtype == object else DATATYPES[array.dtype]
        if raw:
            request.raw_input_contents.append(_raw(array))
        else:
            getattr(tensor.contents, CONTENTS[tensor.datatype]).extend(array.ravel().tolist())
    for name in outputs:
        request.outputs.add(name=name)
    return request


CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def _raw(array: Array) -> bytes:
    if array.dtype == object:
        return b"".join(len(element).to_bytes(4, "little") + element for element in array.ravel().tolist())
    return array.tobytes()


def outputs_of(response: pb.ModelInferResponse) -> dict[str, Array]:
    """The response's outputs, of either form."""
    arrays = {}
    for at, tensor in enumerate(response.outputs):
        if response.raw_output_contents:
            elements: Any = response.raw_output_contents[at]
            if tensor.datatype == "BYTES":
                elements = _unframe(elements)
        else:
            elements = list(getattr(tensor.contents, CONTENTS[tensor.datatype]))
        if tensor.datatype == "BYTES":
            array = np.array(elements, dtype=object)
        elif response.raw_output_contents:
            array = np.frombuffer(elements, dtype=DTYPES[tensor.datatype])
        else:
            array = np.array(elements, dtype=DTYPES[tensor.datatype])
        arrays[tensor.name] = array.reshape(list(tensor.shape))
    return arrays


def _unframe(raw: bytes) -> list[bytes]:
    elements = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        elements.append(raw[4:end])
        raw = raw[end:]
    return elements


class Worker:
    """A model server and the models of its thread. While `paused`, requests wait."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.socket = folder / "worker.sock"
        self.executing = folder / "executing"
        self.server = ModelServer(self.socket, self.executing, **limits)
        self.server.start()
        self.models: dict[int, Model] = {}
        self.client = Client(self.socket)
        self._running = threading.Event()
        self._idle = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain")
        self._thread.start()
        self._running.set()

    def add(self, model_id: str, model: Model, **spec: Any) -> None:
        handle = len(self.models)
        self.models[handle] = model
        signature = {"inputs": [("", "", [])], "outputs": [], "platform": "test", "row_wise": True} | spec
        self.server.add_model(model_id, handle, **signature)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is taken from the queue within."""
        self._running.clear()
        assert self._idle.wait(TIMEOUT_S)
        try:
            yield
        finally:
            self._running.set()

    def queued(self, n: int) -> None:
        """Wait until n requests are queued."""
        wait_until(lambda: self.server.stats()["queued"] == n, f"{n} queued requests")

    def close(self) -> None:
        self._stopped.set()
        self._running.set()
        self.server.stop(0)
        self._thread.join(TIMEOUT_S)
        self.client.channel.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            if not self._running.is_set():
                self._idle.set()
                self._running.wait(TIMEOUT_S)
                self._idle.clear()
                continue
            batch = self.server.next_batch(0.02)
            if batch is not None:
                self.models[batch.handle](batch)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
        time.sleep(0.002)


def echo(batch: Batch) -> None:
    """Answers each input by an output of the same name."""
    batch.reply(batch.inputs())
