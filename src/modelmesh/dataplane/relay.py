"""The native data plane behind the `DataPlane` protocol: events become values, and nothing else happens here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

from modelmesh import _native
from modelmesh.dataplane.protocol import (
    Abandoned,
    Addresses,
    DataPlaneConfig,
    Event,
    Fault,
    Histogram,
    MethodRule,
    Name,
    NameKind,
    NotHere,
    Payload,
    PeerTls,
    Queueing,
    RelayStats,
    Retired,
    Route,
    Split,
    Target,
    TargetBack,
    TargetLost,
    Tls,
    Usage,
    Waiting,
)
from modelmesh.errors import Code, SettingsError

if TYPE_CHECKING:
    from modelmesh.dataplane.protocol import DataPlane


class Relay:
    """The data plane of an instance. See `modelmesh.dataplane.protocol.DataPlane`.

    Raises SettingsError for an impossible port, RuntimeError when used in a forked child.
    """

    __slots__ = ("_native", "_started")

    def __init__(self, config: DataPlaneConfig) -> None:
        try:
            self._native = _native.DataPlane(config)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        self._started = uuid4().hex[:12]
        """Tells the calls of this data plane from those of others."""

    def start(self) -> Addresses:
        try:
            grpc, rest, peer = self._native.start()
        except OSError as error:
            raise SettingsError(str(error)) from error
        return Addresses(grpc=grpc, rest=rest, peer=peer)

    def fileno(self) -> int:
        return self._native.fileno()

    def take_events(self) -> list[Event]:
        return [_event(event) for event in self._native.take_events()]

    def set_targets(self, add: Sequence[Target], remove: Sequence[int]) -> None:
        self._native.set_targets(add, remove)

    def publish(self, routes: Sequence[Route]) -> None:
        self._native.publish(routes)

    def publish_names(self, names: Sequence[tuple[Name, str | Split]]) -> None:
        self._native.publish_names(names)

    def forget_names(self, names: Sequence[Name]) -> None:
        self._native.forget_names(names)

    def set_method_rules(self, rules: Sequence[MethodRule] | None, allow_others: bool) -> None:
        self._native.set_method_rules(rules, allow_others)

    def set_tls(self, tls: Tls) -> None:
        try:
            self._native.set_tls(tls)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def set_peer_tls(self, tls: PeerTls) -> None:
        try:
            self._native.set_peer_tls(tls)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def set_payload_filters(
        self, filters: Sequence[tuple[str, str]], payloads_max: int, bytes_max: int
    ) -> None:
        self._native.set_payload_filters(filters, payloads_max, bytes_max)

    def take_payload(self, timeout_ms: int) -> Payload | None:
        taken = self._native.take_payload(timeout_ms)
        if taken is None:
            return None
        call, model, vmodel, method, code, metadata, data = taken
        id = f"{self._started}-{call}"
        return Payload(id, model, vmodel, method, None if code < 0 else Code(code), dict(metadata), data)

    def retire(self, replicas: Sequence[tuple[int, int]], timeout_ms: int) -> None:
        self._native.retire(replicas, timeout_ms)

    def expect(self, model: str, ready_in_ms: int) -> None:
        self._native.expect(model, ready_in_ms)

    def refuse(
        self, model: str, code: Code, message: str, retry_after_ms: int, cache_ms: int, http_status: int = 0
    ) -> None:
        self._native.refuse(model, code, message, retry_after_ms, cache_ms, http_status)

    def refuse_name(
        self, name: Name, code: Code, message: str, retry_after_ms: int, cache_ms: int, http_status: int = 0
    ) -> None:
        self._native.refuse_name(name, code, message, retry_after_ms, cache_ms, http_status)

    def take_waiting(self) -> list[Waiting]:
        return [Waiting(*row) for row in self._native.take_waiting()]

    def take_usage(self) -> list[Usage]:
        return [Usage(*row) for row in self._native.take_usage()]

    def histograms(self) -> list[Histogram]:
        rows = self._native.histograms()
        return [
            Histogram(metric, method, Code(code), counts, total, model, vmodel)
            for metric, method, code, counts, total, model, vmodel in rows
        ]

    def stats(self) -> RelayStats:
        gauges, counters = self._native.stats()
        return RelayStats(**dict(gauges), counters=dict(counters))

    def drain(self, timeout_ms: int) -> None:
        self._native.drain(timeout_ms)

    def stop(self) -> None:
        self._native.stop()


def _event(event: _native.Event) -> Event:
    match event:
        case ("fault", kind, name, version, model, waiting, earliest, latest, told):
            return Fault(Name(NameKind(kind), name, version), model, waiting, earliest, latest, tuple(told))
        case ("abandoned", kind, name, version, model):
            return Abandoned(Name(NameKind(kind), name, version), model)
        case ("target_lost", target):
            return TargetLost(target)
        case ("target_back", target):
            return TargetBack(target)
        case ("not_here", model, replica):
            return NotHere(model, replica)
        case ("retired", replica, token, clean):
            return Retired(replica, token, clean)
        case ("queueing", model, queued, oldest):
            return Queueing(model, queued, oldest)


if TYPE_CHECKING:

    def _is_a_data_plane(relay: Relay) -> DataPlane:
        return relay
