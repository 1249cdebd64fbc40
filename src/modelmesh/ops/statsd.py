"""Metrics to a statsd server, over UDP: what changed since the last time, every ten seconds, by a task of its own.

The relay keeps histograms, so times and sizes go out as they fell into buckets: one line per bucket with a sample rate that says
how many there were, and values chosen within the buckets so that their sum is exact. What cannot be sent is sent next time.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from modelmesh.instance.background import beside
from modelmesh.ops.metrics import TABLE, LabelPairs, gauges, histograms
from modelmesh.ops.parts import Parts
from modelmesh.settings.exporting import Statsd

_log = logging.getLogger(__name__)

EVERY_S: Final = 10.0
_SEND_TIMEOUT_S: Final = 5.0
PACKET_BYTES_MAX: Final = 1432
"""What fits into a packet of an Ethernet unfragmented."""
_PACKETS_MAX: Final = 1000
_UNIT_BYTES: Final = 8192
"""The predecessor's older names tell sizes in these."""
_RATE_DIGITS: Final = 9


class _Distribution(NamedTuple):
    """A histogram here; a timer there, and a counter where the predecessor has one."""

    legacy: str
    counter: str = ""


DISTRIBUTIONS: Final = {
    "modelmesh_invoke_model_milliseconds": _Distribution("invoke-", "modelmesh_invoke_model"),
    "modelmesh_api_request_milliseconds": _Distribution("api-", "modelmesh_api_request"),
    "modelmesh_request_size_bytes": _Distribution("reqSize-"),
    "modelmesh_response_size_bytes": _Distribution("respSize-"),
    "modelmesh_cache_miss_milliseconds": _Distribution("cacheMiss", "modelmesh_cache_miss"),
    "modelmesh_loadmodel_milliseconds": _Distribution("loadModel", "modelmesh_loadmodel"),
    "modelmesh_unloadmodel_milliseconds": _Distribution("unloadModel", "modelmesh_unloadmodel"),
    "modelmesh_req_queue_delay_milliseconds": _Distribution("queueDelay"),
    "modelmesh_loading_queue_delay_milliseconds": _Distribution("loadModelQueueDelay"),
    "modelmesh_model_sizing_milliseconds": _Distribution("sizeModel"),
    "modelmesh_age_at_eviction_milliseconds": _Distribution("cache_evictModel", "modelmesh_model_evicted"),
    "modelmesh_loaded_model_size_bytes": _Distribution("mmModelSizeBytes"),
}
COUNTERS: Final = {
    "modelmesh_loadmodel_failure": "loadModel-failed",
    "modelmesh_unloadmodel_failure": "unloadModel-failure",
    "modelmesh_unloadmodel_attempt_failure": "unloadModel-attemptFailed",
}
GAUGES: Final = {
    "modelmesh_models_loaded_total": "modelsLoaded",
    "modelmesh_models_with_failure_total": "modelsWithLoadFailure",
    "modelmesh_models_managed_total": "modelsManaged",
    "modelmesh_instance_lru_seconds": "localLruTimestamp",
    "modelmesh_instance_lru_age_seconds": "localLruAge",
    "modelmesh_instance_capacity_bytes": "totalCapacity",
    "modelmesh_instance_used_bytes": "totalUsed",
    "modelmesh_instance_used_bps": "capacityUsage",
    "modelmesh_instance_models_total": "modelCount",
}
"""Names here, and the predecessor's older ones."""

_Series = dict[tuple[str, LabelPairs], tuple[list[int], float]]


class Seen(NamedTuple):
    """Totals at one moment."""

    series: _Series
    counters: Mapping[str, int]


NOTHING: Final = Seen({}, {})


def see(parts: Parts) -> Seen:
    """The totals of now."""
    series = {key: (list(counts), total) for key, (counts, total) in histograms(parts).items()}
    return Seen(series, {name: parts.measures.counters[name] for name in COUNTERS})


def changes(before: Seen, now: Seen, *, legacy: bool) -> Iterator[str]:
    """A line per timer and counter that moved."""
    for (name, labels), (counts, total) in now.series.items():
        old, old_total = before.series.get((name, labels), ([0] * len(counts), 0.0))
        moved = [count - was for count, was in zip(counts, old, strict=True)]
        if any(moved):
            yield from _distribution(name, dict(labels), moved, total - old_total, legacy)
    for name, count in now.counters.items():
        if grown := count - before.counters.get(name, 0):
            yield f"{COUNTERS[name] if legacy else _tagged(name, {})}:{grown}|c"


def standing(values: Mapping[str, float], *, legacy: bool) -> Iterator[str]:
    """A line per gauge that has a value: those of the whole mesh are one instance's. What is below zero is zero: a sign would
    mean a change."""
    for name, old in GAUGES.items():
        if name not in values:
            continue
        value = max(0.0, values[name])
        if legacy and name.endswith("_bytes"):
            value //= _UNIT_BYTES
        yield f"{old if legacy else _tagged(name, {})}:{_number(value)}|g"


def packets(lines: Iterable[str], bytes_max: int = PACKET_BYTES_MAX) -> Iterator[bytes]:
    """Lines packed together, a newline between them; a longer line has a packet of its own."""
    packed, n_bytes = list[bytes](), 0
    for line in map(str.encode, lines):
        if packed and n_bytes + len(packed) + len(line) > bytes_max:
            yield b"\n".join(packed)
            packed, n_bytes = [], 0
        packed.append(line)
        n_bytes += len(line)
    if packed:
        yield b"\n".join(packed)


def spread(bounds: Sequence[float], counts: Sequence[int], total: float) -> list[tuple[float, int]]:
    """A value for each bucket that is not empty, between its bounds, with its count; together they make up `total`. What is
    beyond the last bound takes the rest."""
    lows, highs = (0.0, *bounds), (*bounds, bounds[-1])
    low = sum(n * at for n, at in zip(counts, lows, strict=True))
    width = sum(n * (high - at) for n, at, high in zip(counts, lows, highs, strict=True))
    part = min(1.0, max(0.0, (total - low) / width)) if width else 0.0
    found = [at + part * (high - at) for at, high in zip(lows, highs, strict=True)]
    if counts[-1]:
        inner = sum(n * value for n, value in zip(counts[:-1], found[:-1], strict=True))
        found[-1] = max(bounds[-1], (total - inner) / counts[-1])
    return [(value, n) for value, n in zip(found, counts, strict=True) if n]


@asynccontextmanager
async def sending(parts: Parts, server: Statsd, every_s: float = EVERY_S) -> AsyncIterator[None]:
    """Sends while entered; then the last changes, and zeros for the gauges that were sent."""
    sender = _Sender(parts, server)
    try:
        async with beside(sender.run(every_s), "statsd"):
            yield
    finally:
        await sender.send(dict.fromkeys(sender.shown, 0.0))


class _Sender:
    def __init__(self, parts: Parts, server: Statsd) -> None:
        self._parts, self._server = parts, server
        self._sent = NOTHING
        self._failing = False
        self.shown: Collection[str] = ()
        """The gauges that were sent last."""

    async def run(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            values = gauges(self._parts, await self._parts.control.census())
            self.shown = GAUGES.keys() & values.keys()
            await self.send(values)

    async def send(self, values: Mapping[str, float]) -> None:
        now, legacy = see(self._parts), self._server.legacy
        lines = [*changes(self._sent, now, legacy=legacy), *standing(values, legacy=legacy)]
        packed = list(packets(lines))
        where = f"{self._server.host}:{self._server.port}"
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await self._hand_over(packed[:_PACKETS_MAX])
        except (OSError, TimeoutError) as error:
            if not self._failing:
                _log.warning(
                    "Metrics cannot be sent to statsd at %s (%s); they are sent later.", where, error
                )
            self._failing = True
            return
        if len(packed) > _PACKETS_MAX:
            _log.warning("%d packets of metrics were left out: too many series.", len(packed) - _PACKETS_MAX)
        if self._failing:
            _log.info("Metrics are sent to statsd at %s again.", where)
        self._failing, self._sent = False, now

    async def _hand_over(self, packed: Sequence[bytes]) -> None:
        loop = asyncio.get_running_loop()
        # Asked for each time: a server that moved is found again.
        found = await loop.getaddrinfo(self._server.host, self._server.port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as bound:
            bound.setblocking(False)
            for packet in packed:
                await loop.sock_sendto(bound, packet, address)


def _distribution(
    name: str, labels: Mapping[str, str], counts: Sequence[int], total: float, legacy: bool
) -> Iterator[str]:
    known = DISTRIBUTIONS[name]
    old = known.legacy + labels.get("method", "")
    # Times of calls that failed would say nothing of how long calls take (reference mesh.md 10.3).
    timed = not name.endswith("_milliseconds") or labels.get("code", "OK") == "OK"
    if timed:
        key = _safe(old) if legacy else _tagged(name, labels)
        for value, n in spread(TABLE[name].buckets, counts, total):
            yield f"{key}:{_number(value)}|ms{_rate(n)}"
    if known.counter:
        yield f"{_safe(old) if legacy else _tagged(known.counter, labels)}:{sum(counts)}|c"


def _tagged(name: str, labels: Mapping[str, str]) -> str:
    """Tags as Telegraf and statsd_exporter read them: `name,tag=value`."""
    return ",".join([f"{name}_statsd", *(f"{label}={_safe(value)}" for label, value in labels.items())])


def _safe(text: str) -> str:
    """Without what has a meaning to a server; clients may invent methods."""
    return re.sub(r"[^\w./*-]", "_", text, flags=re.ASCII)


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _rate(n: int) -> str:
    """A server divides by it: rounded down, so that it does not lose one."""
    scale = 10**_RATE_DIGITS
    return f"|@{scale // n / scale:.{_RATE_DIGITS}f}".rstrip("0") if n > 1 else ""
