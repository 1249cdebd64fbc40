"""What the mesh sees of the data plane: routes go down, faults and usage come up, in batches. Values only.

Words: a *name* is what a request asks for; the control plane *resolves* it to a concrete model; a *route* lists the
replicas of a loaded model; a *target* is a model server process that holds replicas. Durations are relative
milliseconds, so that the two languages need not share a clock. The native implementation is
`modelmesh.dataplane.relay`, the simulator's `modelmesh.testing.dataplane`; both pass `tests/contract/test_dataplane.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol

from modelmesh.errors import Code


class NameKind(IntEnum):
    """Which spaces a name is looked up in, and in what order (design: life of a request, names)."""

    MODEL = 0
    """A model only (a data-plane config with vModelId false)."""
    VMODEL = 1
    """A vmodel only (`mm-vmodel-id`)."""
    MODEL_FIRST = 2
    """A model, then a vmodel (`mm-model-id`)."""
    VMODEL_FIRST = 3
    """A vmodel, then a model (a name from the body, from REST or the CLI)."""


class Name(NamedTuple):
    """What a request asked for. `version` is empty when none was given."""

    kind: NameKind
    name: str
    version: str = ""


class Split(NamedTuple):
    """Two models that share the requests for a name while one of them is tried out. Of any number of requests in a row `share`
    (0 to 1), give or take one or two, are for `canary` as long as it has a route with a copy that can be asked; the others are
    for `model`, which is also the one that is waited for."""

    model: str
    canary: str
    share: float


@dataclass(frozen=True, slots=True)
class Target:
    """A model server process. `id` is never reused while the data plane lives. `max_concurrency` bounds what is in flight there
    over all its replicas (0: no bound). `signals_loss`: it says "not here" by the private trailer `mm-not-here`, so a
    NOT_FOUND of its models is believed (built-in workers)."""

    id: int
    address: str
    """`unix:/path` or `host:port`."""
    max_concurrency: int = 0
    signals_loss: bool = True
    methods: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """What the server takes: full method names ("pkg.Service/Method"), each with the path of field numbers at which it reads the
    concrete id in the request message; an empty path: messages go untouched. None listed: every method, messages untouched.
    Otherwise those not listed are answered UNIMPLEMENTED (reference mesh.md 1.4)."""
    allow_any_method: bool = True
    """Methods that `methods` does not list are taken too, messages untouched."""
    peer: bool = False
    """Another instance, at its peer port: it serves from its own copies only, and says "not here" when it has none."""


@dataclass(frozen=True, slots=True)
class MethodRule:
    """What an explicit data-plane config says of one method (reference mesh.md 1.4)."""

    method: str
    """Its full name, "pkg.Service/Method"."""
    id_path: tuple[int, ...] = ()
    """Field numbers down to the id in the request message; such an id wins over headers. Empty: headers only."""
    vmodel: bool = False
    """The id in the message names a vmodel and no model; else a model and no vmodel."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What the gRPC and REST ports show and ask of clients, as texts in PEM."""

    certificate_pem: bytes
    """The certificate, then its issuers."""
    key_pem: bytes = field(repr=False)
    """PKCS#8, PKCS#1 or SEC1; or encrypted PKCS#8 (PBES2 with AES)."""
    passphrase: str = field(default="", repr=False)
    client_auth: Literal["none", "optional", "require"] = "none"
    trust_pem: tuple[bytes, ...] | None = None
    """Who may have issued the certificates of clients; None: whom the system trusts."""


@dataclass(frozen=True, slots=True)
class PeerTls:
    """What instances show each other, as texts in PEM: mutual TLS, as server at the peer port and as client of others."""

    certificate_pem: bytes
    """The certificate, then its issuers. Valid for servers and for clients."""
    key_pem: bytes = field(repr=False)
    """As in `Tls`."""
    trusted_pem: bytes
    """The authorities of the others' certificates, several while one takes the place of another; and certificates trusted
    themselves, as one that all instances share."""
    passphrase: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Replica:
    """A loaded model in one target. `id` is unique per load and never reused. `max_concurrency` 0: no bound of its own."""

    id: int
    target_id: int
    max_concurrency: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """Where a model can be served. Swapped whole; empty `replicas` removes it. Publishing a route that lists a replica
    under retirement revives that replica."""

    model: str
    replicas: tuple[Replica, ...]


class Fault(NamedTuple):
    """Requests are parked because `name` is not resolved (`model` is empty) or `model` has no route. One event per
    unresolved name or model until it is answered or abandoned; more requests join silently. `told` are headers of the first, as
    `DataPlaneConfig.told_headers` says: names and values, these cut off at 256 bytes."""

    name: Name
    model: str
    waiting: int
    earliest_deadline_in_ms: int
    latest_deadline_in_ms: int
    told: tuple[tuple[str, str], ...] = ()


class Abandoned(NamedTuple):
    """The last request waiting for this name (model empty) or model left: deadline, cancellation or disconnection."""

    name: Name
    model: str


class TargetLost(NamedTuple):
    """All connections to a target broke; or it is another instance and said nothing for 750 ms. It is redialled until removed;
    its replicas are skipped meanwhile. Requests to a silent instance park again if their bodies are kept, once per instance;
    others wait for it, for 10 s."""

    target_id: int


class TargetBack(NamedTuple):
    """A lost target answers again."""

    target_id: int


class NotHere(NamedTuple):
    """The target said it does not hold this replica; the replica is skipped until the route is published anew."""

    model: str
    replica_id: int


class Retired(NamedTuple):
    """A retirement ended: `clean` when nothing is in flight any more, else it timed out and the replica is acquirable again
    only if republished. `token` is the one given to `retire`."""

    replica_id: int
    token: int
    clean: bool


class Queueing(NamedTuple):
    """Requests wait at the gate of a model's replicas: `queued` now, the oldest since `oldest_ms`. At most one event
    per model and 50 ms."""

    model: str
    queued: int
    oldest_ms: int


Event = Fault | Abandoned | TargetLost | TargetBack | NotHere | Retired | Queueing


class Waiting(NamedTuple):
    """Requests parked for a model right now."""

    model: str
    waiting: int
    oldest_ms: int
    latest_deadline_in_ms: int


class Usage(NamedTuple):
    """What happened to one replica since the last reading. `execution_us` is the model server's own account."""

    model: str
    replica_id: int
    requests: int
    errors: int
    in_flight: int
    execution_us: int
    last_used_ms_ago: int


class Histogram(NamedTuple):
    """A cumulative histogram of the relay since its start. `counts[i]` is the number of observations ≤ the i-th bucket bound
    of that metric (the predecessor's buckets, reference mesh.md 10.3), the last one +Inf; not cumulative over buckets.
    `model` is the concrete model, and `vmodel` what it was asked for by; both are empty unless `model_series_max` wants them."""

    metric: str
    method: str
    code: Code
    counts: Sequence[int]
    sum: float
    model: str = ""
    vmodel: str = ""


class Payload(NamedTuple):
    """A request or a response, for payload processors (reference mesh.md 10.1)."""

    id: str
    """The same for the request and the response of a call."""
    model: str
    """The concrete model; what was asked for where there is none."""
    vmodel: str
    """What the model was asked for by; empty: by its own id."""
    method: str
    """Its full name, "pkg.Service/Method"."""
    code: Code | None
    """How the call ended; None: it is a request."""
    metadata: dict[str, str]
    """Headers without credentials, the last value of each; those of names ending with -bin in base64."""
    data: bytes
    """The message; empty in the response of a failed call."""

    @property
    def kind(self) -> Literal["request", "response"]:
        return "request" if self.code is None else "response"

    @property
    def status(self) -> str:
        """The name of the code; empty for requests."""
        return "" if self.code is None else self.code.name


@dataclass(frozen=True, slots=True)
class DataPlaneConfig:
    """Fixed at the start. Ports 0 mean any free port; -1 means that listener is off."""

    control_socket: str
    """Path of the unix socket of the control plane's gRPC server (health, reflection, ServerLive, ModelReady, management)."""
    host: str = "127.0.0.1"
    grpc_port: int = 8033
    rest_port: int = 8008
    peer_host: str = "127.0.0.1"
    peer_port: int | None = None
    """Of the port for other instances: they send requests on to it and ask the control plane. None: there is none."""
    peer_tls: PeerTls | None = None
    """None: other instances are spoken to in plain text."""
    threads: int = 1
    message_bytes_max: int = 16 * 1024 * 1024
    header_bytes_max: int = 16 * 1024
    parked_requests_max: int = 20_000
    parked_bytes_max: int = 64 * 1024 * 1024
    """Of bodies of requests that are parked or wait at a gate."""
    kept_body_bytes_max: int = 1024 * 1024
    kept_bytes_max: int = 64 * 1024 * 1024
    park_timeout_ms: int = 120_000
    """How long a request without a deadline may stay parked."""
    gate_queue_max: int = 1024
    """Requests that may queue at the gate of one model's replicas."""
    streams_per_connection_max: int = 1024
    multi_parallelism: int = 4
    """Models that a request which names several is sent to at once."""
    connection_age_ms: int = 0
    """After this long, a tenth more or less, a gRPC connection is asked to end (GOAWAY); 0: never."""
    connection_age_grace_ms: int = 0
    """How much longer its calls may take before they are cut; 0: as long as they do."""
    model_series_max: int = 0
    """Models with histograms of their own; those beyond share the label `other`, and a model unused for an hour gives its place
    away. 0: histograms are not told apart by model."""
    told_headers: Sequence[tuple[str, str]] = ()
    """Headers whose values faults tell, each with the name they are told under."""
    retry_ratio: float = 0.1
    """Retries allowed per request, plus a floor of 10 per second."""
    pass_credentials: bool = False
    """Whether targets that do not signal loss are sent `authorization`, `proxy-authorization` and `cookie` of clients."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """What was bound, as "host:port"; empty when that listener is off."""

    grpc: str
    rest: str
    peer: str = ""


@dataclass(frozen=True, slots=True)
class RelayStats:
    """Gauges of the moment."""

    connections: int = 0
    in_flight: int = 0
    parked_requests: int = 0
    parked_bytes: int = 0
    kept_bytes: int = 0
    routes: int = 0
    names: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    """Totals since the start: requests, refused, retries, replays, cancelled, malformed, gate_queue_full, …"""


class DataPlane(Protocol):
    """All calls are quick and never wait for I/O, except `start` and `stop`. Not thread-safe: one owner, the event loop."""

    def start(self) -> Addresses:
        """Bind and serve. Raises SettingsError with a sentence when a port is taken."""

    def fileno(self) -> int:
        """A file descriptor that is readable when events wait."""

    def take_events(self) -> list[Event]:
        """All events since the last call, oldest first; resets the descriptor."""

    def set_targets(self, add: Sequence[Target], remove: Sequence[int]) -> None:
        """Learn and forget model server processes. In-flight requests of a removed target are lost (and park again)."""

    def publish(self, routes: Sequence[Route]) -> None:
        """Swap routes; parked requests of those models resume, or keep waiting if the route is empty."""

    def publish_names(self, names: Sequence[tuple[Name, str | Split]]) -> None:
        """Resolve names to concrete models. Requests parked under an older resolution of these names resolve again."""

    def forget_names(self, names: Sequence[Name]) -> None:
        """The next request for these names faults again; parked requests resolve again."""

    def set_method_rules(self, rules: Sequence[MethodRule] | None, allow_others: bool) -> None:
        """Let only these methods in, or others too, for calls that come from now on. None: no explicit config, so every method is
        let in and the known protocols have extraction paths of their own. Management, health and reflection always are,
        `mmesh.ModelRuntime` never. Others are answered UNIMPLEMENTED before their body is read."""

    def set_tls(self, tls: Tls) -> None:
        """Serve connections that come from now on by TLS; those that are there stay as they are. Before it, plain text. Raises
        SettingsError with a sentence when it cannot be used; then nothing changes."""

    def set_peer_tls(self, tls: PeerTls) -> None:
        """Speak to other instances by these keys on connections that are made from now on, here and there; those that are there
        stay as they are. Raises SettingsError with a sentence when they cannot be used; then nothing changes."""

    def set_payload_filters(
        self, filters: Sequence[tuple[str, str]], payloads_max: int, bytes_max: int
    ) -> None:
        """Offer the requests and responses of unary calls that one of these (model or vmodel, full method) wants; empty: any.
        No filters: offer nothing. At most `payloads_max` wait to be taken and `bytes_max` are held, by running calls too; the
        rest is dropped and counted (`payloads_dropped`). Calls are never slowed."""

    def take_payload(self, timeout_ms: int) -> Payload | None:
        """The oldest payload, waiting for one; None when none came in time. The one call that waits: for threads of their own,
        several if need be, also after `stop`."""

    def retire(self, replicas: Sequence[tuple[int, int]], timeout_ms: int) -> None:
        """Stop acquiring these (replica id, token); what queued at their gates parks again. Answers with `Retired`."""

    def expect(self, model: str, ready_in_ms: int) -> None:
        """Refuse waiting and coming requests whose deadline is before then (RESOURCE_EXHAUSTED with pushback)."""

    def refuse(
        self, model: str, code: Code, message: str, retry_after_ms: int, cache_ms: int, http_status: int = 0
    ) -> None:
        """Answer all that wait for the model; and, for `cache_ms`, all that come (0: only those waiting). `retry_after_ms`
        −1: no retry information. `http_status` 0: the one of the code. Publishing a route ends it."""

    def refuse_name(
        self, name: Name, code: Code, message: str, retry_after_ms: int, cache_ms: int, http_status: int = 0
    ) -> None:
        """The same for a name that cannot be resolved. At most 10,000 refused names are remembered."""

    def take_waiting(self) -> list[Waiting]: ...

    def take_usage(self) -> list[Usage]:
        """One row per replica used since the last call (a dirty list, not a scan), and per replica in flight."""

    def histograms(self) -> list[Histogram]: ...

    def stats(self) -> RelayStats: ...

    def drain(self, timeout_ms: int) -> None:
        """Stop accepting clients, send them GOAWAY, let what is in flight finish. Returns at once; `stats().in_flight` tells. The
        peer port stays open until `stop`, or until the time is over: others are served, or told that a copy is not here."""

    def stop(self) -> None:
        """Close everything and join the threads. Idempotent."""
