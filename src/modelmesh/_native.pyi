"""The native module: every name that crosses the boundary. `tests/unit/test_native_stub.py` checks it against the binary.

Only `modelmesh.dataplane` imports it. Values, bytes and opaque handles cross; callbacks do not. All calls release the
interpreter lock around waits.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, final

from modelmesh.dataplane.protocol import DataPlaneConfig, MethodRule, PeerTls, Route, Split, Target, Tls

# --- the worker's half: modelmesh.dataplane.model_server -----------------------------------------------------------

Tensor: TypeAlias = tuple[str, str, list[int], bytearray | list[bytes]]
"""(name, datatype, shape, data): datatype as in the protocol ("FP32", "BYTES", …), data row-major little-endian, or the elements
of a BYTES tensor."""

@final
class ModelServer:
    """An Open Inference Protocol gRPC server on a unix socket: ModelInfer, ModelMetadata, ModelReady, ServerLive, ServerReady."""

    def __init__(
        self,
        socket_path: str,
        executing_path: str,
        *,
        message_bytes_max: int = 16777216,
        batch_rows_max: int = 256,
        batch_bytes_max: int = 4194304,
        queue_max: int = 4096,
        queue_bytes_max: int = 67108864,
        stuck_after_ms: int = 60000,
    ) -> None:
        """`queue_bytes_max` bounds the request messages being read, waiting and running together. `executing_path` is
        described in `modelmesh.dataplane.executing`. When a batch runs longer than `stuck_after_ms`, all who wait for its model
        are told DEADLINE_EXCEEDED."""

    def start(self) -> None:
        """Bind and serve: on the thread that waits in `next_batch`, and on one of its own while none does. Raises OSError."""
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
        """Serve a model. Inputs are (name, datatype, shape), outputs (name, datatype, shape, returned by default). −1 in a
        shape: any; an empty shape: any shape; an empty datatype: any numeric one but BF16; a single input with an empty name
        takes one input of any name; no outputs: any may be requested. `row_wise`: requests may be stacked along the first
        dimension. Raises ValueError when the id is taken or a datatype unknown."""
    def remove_model(self, model_id: str) -> int:
        """Stop serving it: later requests get the trailer `mm-not-here`. Returns the requests still queued or running; they
        are served out. Asking again for a removed id tells how many are left."""
    def next_batch(self, timeout_ms: int) -> Batch | None:
        """The next requests to run together, oldest model first; None when none came in time or the server stopped. Publishes the
        model as executing (file `executing_path`) until the batch is answered."""
    def stop(self, grace_ms: int) -> None:
        """Refuse new requests, let queued ones finish for `grace_ms`, close. Idempotent."""
    def stats(self) -> dict[str, int]:
        """requests, batches, rows, queued, refused, connections: totals since the start, `queued` and `connections` of now."""

@final
class Batch:
    """Requests for one model, stacked. Must be answered once, by `reply` or `fail`; dropped unanswered, it fails INTERNAL."""

    @property
    def handle(self) -> int: ...
    @property
    def n_requests(self) -> int: ...
    @property
    def rows(self) -> int:
        """The first dimension of the stacked inputs; 0 when the model is not row-wise."""
    @property
    def outputs(self) -> list[str]:
        """The outputs to compute, in order; empty: those returned by default."""
    @property
    def parameters(self) -> dict[str, bool | int | float | str]: ...
    def inputs(self) -> list[Tensor]:
        """The stacked inputs in the order of the model's signature. The buffers are writable and the caller's own."""
    def reply(self, outputs: Sequence[tuple[str, str, Sequence[int], object]]) -> bool:
        """Answer all requests, rows split among them; data is any C-contiguous buffer or a list of bytes. False: an output's
        first dimension is not `rows`, so the requests were queued again to run singly and the model is not batched any more.
        Raises ValueError, the batch still unanswered, when a requested output is missing or data does not fit its datatype and
        shape. Outputs nobody asked for are left out."""
    def fail(self, code: int, message: str) -> bool:
        """A batch of one fails with this gRPC code. A larger one is halved and queued again, so that a bad request fails alone;
        then False is returned."""

# --- the relay: modelmesh.dataplane.relay --------------------------------------------------------------------------

Name: TypeAlias = tuple[int, str, str]
"""(kind, name, version); a `modelmesh.dataplane.protocol.Name` is one."""

Event: TypeAlias = (
    tuple[Literal["fault"], int, str, str, str, int, int, int, list[tuple[str, str]]]
    | tuple[Literal["abandoned"], int, str, str, str]
    | tuple[Literal["target_lost"], int]
    | tuple[Literal["target_back"], int]
    | tuple[Literal["not_here"], str, int]
    | tuple[Literal["retired"], int, int, bool]
    | tuple[Literal["queueing"], str, int, int]
)
"""A tag, then the fields of the event of that name in `modelmesh.dataplane.protocol`, in their order, a Name as three."""

@final
class DataPlane:
    """The relay. What each call promises is said in `modelmesh.dataplane.protocol`; here are the types. Configuration, targets
    and routes are read by attribute. All calls raise RuntimeError in a forked child."""

    def __init__(self, config: DataPlaneConfig) -> None:
        """Raises ValueError for an impossible port, name of a header, or certificate."""
    def start(self) -> tuple[str, str, str]:
        """The bound gRPC, REST and peer addresses, "host:port" or empty. Raises OSError with a sentence."""
    def fileno(self) -> int: ...
    def take_events(self) -> list[Event]: ...
    def set_targets(self, add: Sequence[Target], remove: Sequence[int]) -> None: ...
    def publish(self, routes: Sequence[Route]) -> None: ...
    def publish_names(self, names: Sequence[tuple[Name, str | Split]]) -> None:
        """A `Split` is read by attribute."""
    def forget_names(self, names: Sequence[Name]) -> None: ...
    def set_method_rules(self, rules: Sequence[MethodRule] | None, allow_others: bool) -> None: ...
    def set_tls(self, tls: Tls) -> None:
        """Raises ValueError with a sentence."""
    def set_peer_tls(self, tls: PeerTls) -> None:
        """Raises ValueError with a sentence."""
    def set_payload_filters(
        self, filters: Sequence[tuple[str, str]], payloads_max: int, bytes_max: int
    ) -> None: ...
    def take_payload(
        self, timeout_ms: int
    ) -> tuple[int, str, str, str, int, list[tuple[str, str]], bytes] | None:
        """(call, model, vmodel, method, code or −1, metadata, data). May be called by any thread."""
    def retire(self, replicas: Sequence[tuple[int, int]], timeout_ms: int) -> None: ...
    def expect(self, model: str, ready_in_ms: int) -> None: ...
    def refuse(
        self, model: str, code: int, message: str, retry_after_ms: int, cache_ms: int, http_status: int
    ) -> None: ...
    def refuse_name(
        self, name: Name, code: int, message: str, retry_after_ms: int, cache_ms: int, http_status: int
    ) -> None: ...
    def take_waiting(self) -> list[tuple[str, int, int, int]]:
        """Fields of `Waiting`."""
    def take_usage(self) -> list[tuple[str, int, int, int, int, int, int]]:
        """Fields of `Usage`."""
    def histograms(self) -> list[tuple[str, str, int, list[int], float, str, str]]:
        """Fields of `Histogram`."""
    def stats(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """The gauges of `RelayStats` and its counters, by name."""
    def drain(self, timeout_ms: int) -> None: ...
    def stop(self) -> None: ...
