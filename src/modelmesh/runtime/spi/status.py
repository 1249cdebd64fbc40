"""What a model server says of itself at the start, checked (reference: the rules KServe ModelMesh starts by)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelmesh.errors import RuntimeUnavailable
from modelmesh.wire.generated import model_runtime_pb2 as wire

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Status:
    """A runtime that is ready and empty."""

    capacity_bytes: int
    max_loads: int
    load_timeout_s: float
    default_bytes: int
    version: str
    methods: tuple[tuple[str, tuple[int, ...]], ...]
    allow_any_method: bool
    limits_concurrency: bool


def read(address: str, answer: wire.RuntimeStatusResponse) -> Status:
    """The checked status of a READY answer. Raises RuntimeUnavailable with a sentence that names what is wrong."""
    default_bytes, capacity_bytes = answer.defaultModelSizeInBytes, answer.capacityInBytes
    least_bytes = max(2 * default_bytes, min(512 * _MIB, 10 * default_bytes))
    wrong = ""
    if answer.maxLoadingConcurrency < 1:
        wrong = "maxLoadingConcurrency is 0; at least one load must be allowed at a time"
    elif default_bytes < 1:
        wrong = "defaultModelSizeInBytes is 0"
    elif answer.modelLoadingTimeoutMs < 100:
        wrong = f"modelLoadingTimeoutMs is {answer.modelLoadingTimeoutMs}; less than 100 ms loads nothing"
    elif capacity_bytes < least_bytes:
        wrong = (
            f"capacityInBytes is {capacity_bytes}, but with a default model size of {default_bytes} bytes "
            f"it must be at least {least_bytes}"
        )
    if wrong:
        raise RuntimeUnavailable(f"The runtime at {address} cannot be used: {wrong}.")
    methods = tuple(sorted((name, tuple(info.idInjectionPath)) for name, info in answer.methodInfos.items()))
    return Status(
        capacity_bytes=capacity_bytes,
        max_loads=answer.maxLoadingConcurrency,
        load_timeout_s=answer.modelLoadingTimeoutMs / 1000,
        default_bytes=default_bytes,
        version=answer.runtimeVersion,
        methods=methods,
        allow_any_method=answer.allowAnyMethod or not methods,
        limits_concurrency=answer.limitModelConcurrency,
    )
