"""The native model server with numpy: batches come as arrays that view its buffers, and arrays go back.

Used by the worker only: it imports numpy, which the instance does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from modelmesh import _native
from modelmesh.errors import Code

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}
"""The numpy dtype of each protocol datatype but BYTES. BF16 has none of its own and comes as its bits."""

DATATYPES: Final[dict[np.dtype[Any], str]] = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
"""The protocol datatype of each numpy dtype but texts and objects, which are BYTES."""


class Batch:
    """Requests for one model, stacked. Answer it once, by `reply` or `fail`; dropped unanswered, it fails INTERNAL."""

    __slots__ = ("_native",)

    def __init__(self, native: _native.Batch) -> None:
        self._native = native

    @property
    def handle(self) -> int:
        """What `add_model` was given."""
        return self._native.handle

    @property
    def n_requests(self) -> int:
        """How many requests run together; 0 once answered."""
        return self._native.n_requests

    @property
    def rows(self) -> int:
        """The first dimension of the stacked inputs; 0 when the model is not row-wise."""
        return self._native.rows

    @property
    def outputs(self) -> list[str]:
        """The outputs to compute, in order; empty: those returned by default."""
        return self._native.outputs

    @property
    def parameters(self) -> dict[str, bool | int | float | str]:
        """The request parameters, which all requests of the batch share."""
        return self._native.parameters

    def inputs(self) -> dict[str, Array]:
        """The inputs by name, in the order of the model's signature: writable arrays of the caller's own. BYTES are object arrays
        of bytes, BF16 is uint16. Each call copies them once from the requests."""
        return {name: _array(datatype, shape, data) for name, datatype, shape, data in self._native.inputs()}

    def reply(self, outputs: Mapping[str, Array]) -> bool:
        """Answer all requests, rows split among them. False: an output's first dimension is not `rows`, so the requests were
        queued again to run singly and the model is not batched any more. Raises ValueError or TypeError, the batch still
        unanswered, when a requested output is missing or an array has no datatype in the protocol."""
        return self._native.reply([_output(name, array) for name, array in outputs.items()])

    def fail(self, code: Code, message: str) -> bool:
        """A batch of one fails with this code. A larger one is halved and queued again, so that a bad request fails alone; then
        False is returned."""
        return self._native.fail(code, message)


class ModelServer:
    """An Open Inference Protocol server on a unix socket. All methods may be called from any thread.

    Python's gRPC sends the escaped socket path as the authority, which is none (RFC 3986, 3.2) and is refused: such clients
    set the channel option `grpc.default_authority`.
    """

    def __init__(
        self,
        socket_path: Path,
        executing_path: Path,
        *,
        message_bytes_max: int = 16 << 20,
        batch_rows_max: int = 256,
        batch_bytes_max: int = 4 << 20,
        queue_max: int = 4096,
        queue_bytes_max: int = 64 << 20,
        stuck_after_s: float = 60.0,
    ) -> None:
        """`queue_bytes_max` bounds the messages being read, waiting and running together; beyond it and beyond `queue_max`
        waiting requests callers are told RESOURCE_EXHAUSTED and when to come back. When a batch runs longer than
        `stuck_after_s`, all who wait for its model are told DEADLINE_EXCEEDED; ending it is the supervisor's."""
        self._native = _native.ModelServer(
            str(socket_path),
            str(executing_path),
            message_bytes_max=message_bytes_max,
            batch_rows_max=batch_rows_max,
            batch_bytes_max=batch_bytes_max,
            queue_max=queue_max,
            queue_bytes_max=queue_bytes_max,
            stuck_after_ms=round(stuck_after_s * 1000),
        )

    def start(self) -> None:
        """Bind and serve: on the thread that waits in `next_batch`, and on one of its own while none does. Raises OSError."""
        self._native.start()

    def add_model(
        self,
        model_id: str,
        handle: int,
        *,
        platform: str,
        inputs: Sequence[tuple[str, str, Sequence[int]]],
        outputs: Sequence[tuple[str, str, Sequence[int], bool]],
        row_wise: bool,
    ) -> None:
        """Serve a model: see `_native.pyi`. Raises ValueError when the id is taken or a datatype unknown."""
        self._native.add_model(
            model_id, handle, platform=platform, inputs=inputs, outputs=outputs, row_wise=row_wise
        )

    def remove_model(self, model_id: str) -> int:
        """Stop serving it. Returns the requests still queued or running, which are served out; ask again to learn how many are
        left."""
        return self._native.remove_model(model_id)

    def next_batch(self, timeout_s: float) -> Batch | None:
        """The next requests to run together, oldest model first; None when none came in time or the server stopped."""
        native = self._native.next_batch(int(timeout_s * 1000))
        return None if native is None else Batch(native)

    def stop(self, grace_s: float) -> None:
        """Refuse new requests, let queued ones finish for `grace_s`, close. Idempotent."""
        self._native.stop(int(grace_s * 1000))

    def stats(self) -> dict[str, int]:
        """requests, batches, rows, refused: totals since the start; queued, connections: of now."""
        return self._native.stats()


def _array(datatype: str, shape: list[int], data: bytearray | list[bytes]) -> Array:
    if isinstance(data, list):
        elements = np.empty(len(data), dtype=object)
        elements[:] = data
        return elements.reshape(shape)
    return np.frombuffer(data, dtype=DTYPES[datatype]).reshape(shape)


def _output(name: str, array: Array) -> tuple[str, str, Sequence[int], object]:
    datatype = DATATYPES.get(array.dtype)
    if datatype is None:
        if array.dtype.kind in "OSU":
            return name, "BYTES", array.shape, [_element(element) for element in array.ravel().tolist()]
        array = array.astype(array.dtype.newbyteorder("<"))
        datatype = DATATYPES.get(array.dtype)
        if datatype is None:
            raise TypeError(
                f"Output '{name}' has the dtype {array.dtype}, which the protocol does not have; convert it."
            )
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    return name, datatype, array.shape, array


def _element(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()
