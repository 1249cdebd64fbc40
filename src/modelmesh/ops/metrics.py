"""/metrics: text format 0.0.4. The predecessor's names, labels and buckets (reference: its `Metric` list), plus ours.

`TABLE` is the list of all families; `docs/metrics.md` shows it, and a test compares them. Nothing is counted here: a
scrape reads what the relay, the control plane and the ledger say of themselves. Cost does not grow with the models, unless series
per model are wanted: those are bounded.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import Final

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from modelmesh.mesh.measures import AGES_MS, MILLISECONDS, SIZES_BYTES
from modelmesh.mesh.views import MeshCount
from modelmesh.ops import mesh_gauges
from modelmesh.ops.parts import Parts

_log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MESSAGE_BYTES: Final = tuple(128.0 * 4**power for power in range(8))
"""The predecessor's buckets for requests and responses; the other three kinds are the control plane's."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. `kind` "untyped" is a counter whose name, kept from the predecessor, lacks the `_total` of the format."""

    name: str
    kind: str
    says: str
    buckets: tuple[float, ...] = ()
    labels: tuple[str, ...] = field(default=())


_CALL: Final = ("method", "code")
PREDECESSOR: Final = (
    Family(
        "modelmesh_invoke_model_milliseconds", "histogram", "Calls of the model server.", MILLISECONDS, _CALL
    ),
    Family(
        "modelmesh_api_request_milliseconds",
        "histogram",
        "Inference calls, at the entry.",
        MILLISECONDS,
        _CALL,
    ),
    Family("modelmesh_request_size_bytes", "histogram", "Inference requests.", MESSAGE_BYTES, _CALL),
    Family("modelmesh_response_size_bytes", "histogram", "Inference responses.", MESSAGE_BYTES, _CALL),
    Family(
        "modelmesh_cache_miss_milliseconds",
        "histogram",
        "Waits of calls for a load, above 10 ms.",
        MILLISECONDS,
    ),
    Family("modelmesh_loadmodel_milliseconds", "histogram", "Loads that succeeded.", MILLISECONDS),
    Family("modelmesh_loadmodel_failure", "untyped", "Loads that were tried and failed."),
    Family("modelmesh_unloadmodel_milliseconds", "histogram", "Unloads.", MILLISECONDS),
    Family(
        "modelmesh_unloadmodel_failure",
        "untyped",
        "Unloads given up after several tries; the memory counts as nobody's.",
    ),
    Family("modelmesh_unloadmodel_attempt_failure", "untyped", "Failed attempts to unload."),
    Family(
        "modelmesh_req_queue_delay_milliseconds",
        "histogram",
        "Waits at the gate of a loaded model.",
        MILLISECONDS,
    ),
    Family(
        "modelmesh_loading_queue_delay_milliseconds",
        "histogram",
        "Waits of loads in their queue.",
        MILLISECONDS,
    ),
    Family(
        "modelmesh_model_sizing_milliseconds",
        "histogram",
        "Time to measure a model, beside its load.",
        MILLISECONDS,
    ),
    Family(
        "modelmesh_age_at_eviction_milliseconds",
        "histogram",
        "Time since last use of evicted models.",
        AGES_MS,
    ),
    Family(
        "modelmesh_loaded_model_size_bytes", "histogram", "Sizes of loaded models, in memory.", SIZES_BYTES
    ),
    Family(
        "modelmesh_models_loaded_total", "gauge", "Of the mesh, by one instance: models with a loaded copy."
    ),
    Family(
        "modelmesh_models_with_failure_total",
        "gauge",
        "Of the mesh, by one instance: models with a standing load failure.",
    ),
    Family("modelmesh_models_managed_total", "gauge", "Of the mesh, by one instance: registered models."),
    Family(
        "modelmesh_instance_lru_seconds",
        "gauge",
        "Unix time of the least recent use of a loaded model; 0: none.",
    ),
    Family("modelmesh_instance_lru_age_seconds", "gauge", "The age of that use; 0: none."),
    Family("modelmesh_instance_capacity_bytes", "gauge", "Bytes models may use."),
    Family(
        "modelmesh_instance_used_bytes", "gauge", "Bytes charged: loaded, loading, unloading, unattributed."
    ),
    Family("modelmesh_instance_used_bps", "gauge", "Used bytes per capacity, times 10000."),
    Family("modelmesh_instance_models_total", "gauge", "Models loaded in this instance."),
)
_OURS: Final = (
    Family("modelmesh_ready", "gauge", "1 when /ready answers 200."),
    Family(
        "modelmesh_info",
        "gauge",
        "1, labelled with what runs here.",
        (),
        ("instance", "version", "eviction_policy"),
    ),
    Family("modelmesh_faults_total", "counter", "Requests or groups of requests that found no loaded copy."),
    Family("modelmesh_refusals_total", "counter", "Models or names refused instead of waited for."),
    Family("modelmesh_evictions_total", "counter", "Models evicted to make room."),
    Family(
        "modelmesh_evictions_cancelled_total",
        "counter",
        "Evictions given up, since requests kept the model busy.",
    ),
    Family("modelmesh_copies_lost_total", "counter", "Copies that vanished without having been unloaded."),
    Family("modelmesh_loads_abandoned_total", "counter", "Loads given up, since nobody waited any more."),
    Family("modelmesh_gate_queueing_total", "counter", "Reports of requests that queued at a model's gate."),
    Family(
        "modelmesh_scaled_up_total", "counter", "Times that more copies were made of a model in use here."
    ),
    Family(
        "modelmesh_scaled_down_total", "counter", "Copies given up here because others serve their models."
    ),
    Family("modelmesh_loads_total", "counter", "Loads that succeeded."),
    Family("modelmesh_loads_queued", "gauge", "Loads that wait for a slot or for memory."),
    Family("modelmesh_loads_running", "gauge", "Loads that run."),
    Family(
        "modelmesh_thrashing", "gauge", "1 while loads evict what loads need: the working set does not fit."
    ),
    Family("modelmesh_vmodels_total", "gauge", "Registered vmodels."),
    Family(
        "modelmesh_canaries_promoted_total",
        "counter",
        "Trials of canaries after which the vmodel moved to them.",
    ),
    Family(
        "modelmesh_canaries_rolled_back_total",
        "counter",
        "Trials of canaries that failed: the active model stayed.",
    ),
    Family(
        "modelmesh_ledger_bytes", "gauge", "The account of bytes of models, by account.", (), ("account",)
    ),
    Family("modelmesh_memory_budget_bytes", "gauge", "What the workers may use in all."),
    Family(
        "modelmesh_worker_pss_bytes",
        "gauge",
        "Memory a worker uses (proportional set size).",
        (),
        ("worker",),
    ),
    Family("modelmesh_worker_base_bytes", "gauge", "What a worker weighs without models.", (), ("worker",)),
    Family("modelmesh_worker_charged_bytes", "gauge", "What a worker's models are charged.", (), ("worker",)),
    Family("modelmesh_mesh_copies", "gauge", "Of the mesh, by one instance: loaded copies."),
    Family("modelmesh_mesh_capacity_bytes", "gauge", "Of the mesh, by one instance: bytes models may use."),
    Family("modelmesh_mesh_free_bytes", "gauge", "Of the mesh, by one instance: bytes no model is charged."),
    Family(
        "modelmesh_mesh_requests_per_second",
        "gauge",
        "Of the mesh, by one instance: requests of loaded models, over the last seconds.",
    ),
    Family(
        "modelmesh_mesh_instances",
        "gauge",
        "Of the mesh, by one instance: instances, by condition.",
        (),
        ("condition",),
    ),
    Family("modelmesh_peers", "gauge", "Other instances, as this one finds them.", (), ("condition",)),
    Family("modelmesh_cordoned", "gauge", "1 when no model is to be placed here."),
    Family("modelmesh_relay_connections", "gauge", "Client connections."),
    Family("modelmesh_relay_in_flight", "gauge", "Requests in flight."),
    Family("modelmesh_relay_parked_requests", "gauge", "Requests that wait for a model."),
    Family("modelmesh_relay_parked_bytes", "gauge", "Bodies of requests that wait for a model or its slots."),
    Family("modelmesh_relay_kept_bytes", "gauge", "Bodies kept to be sent again should a copy be lost."),
    Family("modelmesh_relay_routes", "gauge", "Models with a route."),
    Family("modelmesh_relay_names", "gauge", "Resolved names."),
    Family("modelmesh_relay_events_total", "counter", "What the relay counted, by event.", (), ("event",)),
)
TABLE: Final[dict[str, Family]] = {family.name: family for family in (*PREDECESSOR, *_OURS)}

_COUNTERS: Final = {
    "modelmesh_loadmodel": "modelmesh_loads_total",
    "modelmesh_loadmodel_failure": "modelmesh_loadmodel_failure",
    "modelmesh_unloadmodel_failure": "modelmesh_unloadmodel_failure",
    "modelmesh_unloadmodel_attempt_failure": "modelmesh_unloadmodel_attempt_failure",
    "modelmesh_model_evicted": "modelmesh_evictions_total",
    "modelmesh_evictions_cancelled": "modelmesh_evictions_cancelled_total",
    "modelmesh_faults": "modelmesh_faults_total",
    "modelmesh_refusals": "modelmesh_refusals_total",
    "modelmesh_copies_lost": "modelmesh_copies_lost_total",
    "modelmesh_loads_abandoned": "modelmesh_loads_abandoned_total",
    "modelmesh_gate_queueing": "modelmesh_gate_queueing_total",
    "modelmesh_scaled_up": "modelmesh_scaled_up_total",
    "modelmesh_scaled_down": "modelmesh_scaled_down_total",
    "modelmesh_canaries_promoted": "modelmesh_canaries_promoted_total",
    "modelmesh_canaries_rolled_back": "modelmesh_canaries_rolled_back_total",
}
"""The control plane's counters, and the families that show them."""

Labels = Mapping[str, str]
LabelPairs = tuple[tuple[str, str], ...]
Values = Iterable[tuple[Labels, float]]


class InstanceCollector(Collector):
    """What the parts say when it is made; to write that down needs no event loop. `census` as from the control plane."""

    def __init__(self, parts: Parts, census: MeshCount | None) -> None:
        self._info_metric = parts.info_metric
        self._series, self._scalars = histograms(parts), _scalars(parts, census)

    def collect(self) -> Iterator[Metric]:
        yield from self._histograms()
        yield from self._info()
        for name, values in self._scalars.items():
            family = TABLE[name]
            metric = Metric(_bare(family), family.says, family.kind)
            for labels, value in values:
                metric.add_sample(family.name, dict(labels), value)
            yield metric

    def _histograms(self) -> Iterator[Metric]:
        metrics = {
            family.name: Metric(family.name, family.says, "histogram")
            for family in TABLE.values()
            if family.kind == "histogram"
        }
        for (name, labels), (counts, total) in self._series.items():
            _add_histogram(metrics[name], dict(labels), counts, total)
        yield from metrics.values()

    def _info(self) -> Iterator[Metric]:
        told = self._info_metric
        if told is not None:
            metric = Metric(told.name, "What runs here, as its environment says.", "gauge")
            metric.add_sample(told.name, dict(told.labels), 1)
            yield metric


def _scalars(parts: Parts, census: MeshCount | None) -> dict[str, Values]:
    members = parts.control.members()
    view, relay = parts.control.instance(), parts.relay.stats()
    ledger, memory = view.ledger, parts.control.memory()
    info = {"instance": view.id, "version": view.version, "eviction_policy": view.eviction_policy}
    several: dict[str, Values] = {
        "modelmesh_peers": mesh_gauges.peers(members),
        "modelmesh_info": [(info, 1)],
        "modelmesh_ledger_bytes": [
            ({"account": account}, getattr(ledger, f"{account}_bytes"))
            for account in ("capacity", "loaded", "loading", "unloading", "unattributed", "free")
        ],
        "modelmesh_worker_pss_bytes": [({"worker": name}, pss) for name, pss, _, _ in memory],
        "modelmesh_worker_base_bytes": [({"worker": name}, base) for name, _, base, _ in memory],
        "modelmesh_worker_charged_bytes": [({"worker": name}, charged) for name, _, _, charged in memory],
        "modelmesh_relay_events_total": [
            ({"event": event}, n) for event, n in sorted(relay.counters.items())
        ],
    }
    plain = gauges(parts, census)
    if census is not None:
        several["modelmesh_mesh_instances"] = mesh_gauges.instances(members)
        plain |= mesh_gauges.summed(members)
    counted = {_COUNTERS[name]: n for name, n in parts.measures.counters.items() if name in _COUNTERS}
    return {name: [({}, float(value))] for name, value in (plain | counted).items()} | several


def gauges(parts: Parts, census: MeshCount | None) -> dict[str, float]:
    """What stands at the moment, of the families without labels. Without a census, those of the whole mesh are another's."""
    view, relay = parts.control.instance(), parts.relay.stats()
    ledger, oldest_s = view.ledger, parts.oldest_use_wall_s()
    used_bytes = ledger.capacity_bytes - ledger.free_bytes
    return mesh_gauges.counted(census) | {
        "modelmesh_instance_lru_seconds": oldest_s,
        "modelmesh_instance_lru_age_seconds": max(0.0, parts.clock.wall_s() - oldest_s) if oldest_s else 0,
        "modelmesh_instance_capacity_bytes": ledger.capacity_bytes,
        "modelmesh_instance_used_bytes": used_bytes,
        "modelmesh_instance_used_bps": 10_000 * used_bytes // ledger.capacity_bytes
        if ledger.capacity_bytes
        else 0,
        "modelmesh_instance_models_total": view.models_loaded,
        "modelmesh_ready": view.ready and not view.draining,
        "modelmesh_cordoned": view.cordoned,
        "modelmesh_loads_queued": view.loads_queued,
        "modelmesh_loads_running": view.loads_running,
        "modelmesh_thrashing": bool(view.thrashing),
        "modelmesh_vmodels_total": view.vmodels_registered,
        "modelmesh_memory_budget_bytes": parts.budget_bytes,
        "modelmesh_relay_connections": relay.connections,
        "modelmesh_relay_in_flight": relay.in_flight,
        "modelmesh_relay_parked_requests": relay.parked_requests,
        "modelmesh_relay_parked_bytes": relay.parked_bytes,
        "modelmesh_relay_kept_bytes": relay.kept_bytes,
        "modelmesh_relay_routes": relay.routes,
        "modelmesh_relay_names": relay.names,
    }


Series = dict[tuple[str, LabelPairs], tuple[list[int], float]]
"""By name and labels: counts per bucket, not cumulated, and the sum."""


def histograms(parts: Parts) -> Series:
    """All of them. Methods that share a label are one series."""
    series: Series = {}
    for seen in parts.relay.histograms():
        family = TABLE.get(seen.metric)
        if family is None:
            continue
        labels: LabelPairs = ()
        if family.labels:
            method = seen.method if parts.export.full_methods else seen.method.rpartition("/")[2]
            labels = (("method", method), ("code", seen.code.name))
        if parts.export.per_model:
            labels += _of_model(seen.model, seen.vmodel if family.labels else "")
        counts, total = series.get((seen.metric, labels), ([0] * len(seen.counts), 0.0))
        series[seen.metric, labels] = (list(map(add, counts, seen.counts)), total + seen.sum)
    return series | _measured(parts)


def _measured(parts: Parts) -> Series:
    measures = parts.measures
    if not parts.export.per_model:
        return {(name, ()): (list(seen.counts), seen.sum) for name, seen in measures.histograms.items()}
    return {
        (name, _of_model(model, "")): (list(seen.counts), seen.sum)
        for model, by_name in measures.by_model.items()
        for name, seen in by_name.items()
        if any(seen.counts)
    }


def _of_model(model: str, vmodel: str) -> LabelPairs:
    return (("modelId", model), ("vModelId", vmodel))


class _Only(Collector):
    """The families with one of these names, as asked for by `name[]`."""

    def __init__(self, whole: Collector, names: frozenset[str]) -> None:
        self._whole, self._names = whole, names

    def collect(self) -> Iterator[Metric]:
        for metric in self._whole.collect():
            if any(sample.name in self._names for sample in metric.samples) or metric.name in self._names:
                yield metric


async def exposition(parts: Parts, request: Request) -> Response:
    """The answer to a scrape; gzip when accepted. With series per model it is long, so a thread writes it."""
    if parts.log_scrapes:
        _log.info("Metrics were scraped by %s.", request.client.host if request.client else "somebody")
    collector: Collector = InstanceCollector(parts, await parts.control.census())
    if names := request.query_params.getlist("name[]"):
        collector = _Only(collector, frozenset(names))
    packed = "gzip" in request.headers.get("accept-encoding", "")
    if parts.export.per_model:
        text = await asyncio.to_thread(_written, collector, packed)
    else:
        text = _written(collector, packed)
    headers = {"Content-Type": CONTENT_TYPE}
    if packed:
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(text, headers=headers)


def _written(collector: Collector, packed: bool) -> bytes:
    text = generate_latest(collector)
    return gzip.compress(text, compresslevel=1) if packed else text


def _add_histogram(metric: Metric, labels: Labels, counts: Sequence[int], total: float) -> None:
    bounds = [*map(_bound, TABLE[metric.name].buckets), "+Inf"]
    cumulated = 0
    for bound, count in zip(bounds, counts, strict=True):
        cumulated += count
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": bound}, cumulated)
    metric.add_sample(f"{metric.name}_count", dict(labels), cumulated)
    metric.add_sample(f"{metric.name}_sum", dict(labels), total)


def _bound(bound: float) -> str:
    return f"{float(bound)}"


def _bare(family: Family) -> str:
    """The writer appends `_total` to the names of counters itself."""
    return family.name.removesuffix("_total") if family.kind == "counter" else family.name
