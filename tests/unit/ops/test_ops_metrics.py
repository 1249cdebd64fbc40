"""/metrics: names, labels and buckets of the predecessor, and that the page lists exactly what is shown."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelmesh.dataplane.protocol import Histogram, RelayStats
from modelmesh.errors import Code
from modelmesh.mesh.measures import Measures
from modelmesh.ops.metrics import CONTENT_TYPE, TABLE
from modelmesh.settings.exporting import Export, InfoMetric
from modelmesh.testing.control import FakeControlPlane, member_view
from modelmesh.testing.ops import QuietRelay, parts_over, served_ops

METHOD = "inference.GRPCInferenceService/ModelInfer"


def scrape(
    relay: QuietRelay | None = None,
    control: FakeControlPlane | None = None,
    query: str = "",
    **shown: Any,
) -> httpx.Response:
    parts = replace(parts_over(control or FakeControlPlane(), relay), **shown)
    parts.measures.observe("modelmesh_loadmodel_milliseconds", 7.0)
    parts.measures.count("modelmesh_loadmodel_failure", 3)
    with served_ops(parts) as url:
        return httpx.get(f"{url}/metrics{query}", timeout=10)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_all_families_are_shown_and_documented() -> None:
    response = scrape()
    assert response.headers["content-type"] == CONTENT_TYPE
    shown = re.findall(r"^# TYPE (\w+) (\w+)$", response.text, re.MULTILINE)
    assert dict(shown) == {family.name: family.kind for family in TABLE.values()}
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(modelmesh_\w+)` \| (\w+) \| ([^|]*) \|", page, re.MULTILINE)
    assert {name: (kind, labels) for name, kind, labels in rows} == {
        family.name: (family.kind, ", ".join(family.labels) or "-") for family in TABLE.values()
    }


def test_histograms_of_the_relay_are_cumulated_and_labelled() -> None:
    relay = QuietRelay()
    relay.observed = [
        Histogram("modelmesh_invoke_model_milliseconds", METHOD, Code.NOT_FOUND, [1, 2, *[0] * 17, 3], 12.5),
        Histogram("modelmesh_request_size_bytes", METHOD, Code.OK, [4, *[0] * 8], 400.0),
        Histogram("modelmesh_cache_miss_milliseconds", METHOD, Code.OK, [0] * 19 + [1], 9e5),
        Histogram("something_newer", METHOD, Code.OK, [1], 1.0),
    ]
    seen = samples(scrape(relay).text)
    labels = (("code", "NOT_FOUND"), ("method", "ModelInfer"))
    name = "modelmesh_invoke_model_milliseconds"
    buckets = {dict(key[1])["le"]: value for key, value in seen.items() if key[0] == f"{name}_bucket"}
    assert (buckets["0.5"], buckets["1.0"], buckets["300000.0"], buckets["+Inf"]) == (1, 3, 3, 6)
    assert seen[(f"{name}_count", labels)] == 6
    assert seen[(f"{name}_sum", labels)] == 12.5
    assert seen[("modelmesh_cache_miss_milliseconds_count", ())] == 1
    assert (
        seen[
            (
                "modelmesh_request_size_bytes_bucket",
                (("code", "OK"), ("le", "128.0"), ("method", "ModelInfer")),
            )
        ]
        == 4
    )


@pytest.mark.parametrize(
    ("kind", "first", "last", "n"),
    [
        ("modelmesh_loadmodel_milliseconds", 0.5, 300_000, 19),
        ("modelmesh_age_at_eviction_milliseconds", 30_000, 90 * 86_400_000, 10),
        ("modelmesh_loaded_model_size_bytes", 256 << 10, (256 << 10) * 4**7, 8),
        ("modelmesh_response_size_bytes", 128, 128 * 4**7, 8),
    ],
)
def test_buckets_are_the_predecessors(kind: str, first: float, last: float, n: int) -> None:
    buckets = TABLE[kind].buckets
    assert (buckets[0], buckets[-1], len(buckets)) == (first, last, n)
    assert list(buckets) == sorted(buckets)


def test_what_is_counted_and_what_stands() -> None:
    control, relay = FakeControlPlane(), QuietRelay()
    control.ready = False
    relay.shown = RelayStats(parked_requests=5, counters={"retries": 2})
    seen = samples(scrape(relay, control).text)
    assert seen[("modelmesh_loadmodel_milliseconds_count", ())] == 1
    assert seen[("modelmesh_loadmodel_failure", ())] == 3
    assert seen[("modelmesh_relay_parked_requests", ())] == 5
    assert seen[("modelmesh_relay_events_total", (("event", "retries"),))] == 2
    assert seen[("modelmesh_ready", ())] == 0
    assert seen[("modelmesh_worker_pss_bytes", (("worker", "worker 0"),))] == 60 << 20
    assert seen[("modelmesh_ledger_bytes", (("account", "free"),))] == 1 << 30


def test_what_is_of_the_mesh_is_told_by_one_instance() -> None:
    control = FakeControlPlane()
    control.others = [
        replace(member_view("b"), cordoned=True),
        replace(member_view("c"), suspected=True, draining=True),
        replace(member_view("d"), draining=True),
    ]
    control.cordoned = {"b"}
    seen = samples(scrape(control=control).text)
    of = {labels[0][1]: value for (name, labels), value in seen.items() if name == "modelmesh_mesh_instances"}
    assert of == {"ok": 1, "cordoned": 1, "draining": 1, "suspected": 1}
    assert seen[("modelmesh_mesh_capacity_bytes", ())] == 3 << 30
    assert seen[("modelmesh_mesh_requests_per_second", ())] == 7.5
    assert seen[("modelmesh_peers", (("condition", "answers"),))] == 2
    assert seen[("modelmesh_models_managed_total", ())] == 0

    control.tells_of_mesh = False
    silent = {name for name, _ in samples(scrape(control=control).text)}
    assert not {name for name in silent if name.startswith(("modelmesh_mesh_", "modelmesh_models_"))}
    assert {"modelmesh_peers", "modelmesh_cordoned", "modelmesh_instance_models_total"} <= silent


def test_families_can_be_picked_by_name() -> None:
    text = scrape(query="?name[]=modelmesh_ready&name[]=modelmesh_loadmodel_milliseconds_count").text
    shown = re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)
    assert shown == ["modelmesh_loadmodel_milliseconds", "modelmesh_ready"]


def test_compressed_only_when_accepted() -> None:
    with served_ops(parts_over(FakeControlPlane())) as url:
        packed = httpx.get(f"{url}/metrics", headers={"accept-encoding": "gzip"})
        plain = httpx.get(f"{url}/metrics", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.text == plain.text


def test_methods_of_one_short_name_are_one_series_unless_full_names_are_wanted() -> None:
    relay = QuietRelay()
    name, other = "modelmesh_invoke_model_milliseconds", "other.Service/ModelInfer"
    counts = [1, *[0] * 19]
    relay.observed = [Histogram(name, method, Code.OK, counts, 2.0) for method in (METHOD, other)]

    def of(method: str, seen: dict[Any, float]) -> tuple[float, float]:
        labels = (("code", "OK"), ("method", method))
        return seen[f"{name}_count", labels], seen[f"{name}_sum", labels]

    assert of("ModelInfer", samples(scrape(relay).text)) == (2, 4.0)
    full = samples(scrape(relay, export=Export(full_methods=True)).text)
    assert of(METHOD, full) == of(other, full) == (1, 2.0)
    assert counts[0] == 1


def test_the_info_metric_is_one_with_labels() -> None:
    told = InfoMetric("assistant:relabel", (("slot", "blue"), ("group", "")))
    seen = samples(scrape(info_metric=told).text)
    assert seen["assistant:relabel", (("group", ""), ("slot", "blue"))] == 1


def test_scrapes_are_logged_when_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modelmesh")
    scrape()
    assert not caplog.messages
    scrape(log_scrapes=True)
    assert caplog.messages == ["Metrics were scraped by 127.0.0.1."]


def test_series_per_model_when_they_are_wanted() -> None:
    relay = QuietRelay()
    counts = [1, *[0] * 19]
    name, loading = "modelmesh_invoke_model_milliseconds", "modelmesh_loadmodel_milliseconds"
    relay.observed = [Histogram(name, METHOD, Code.OK, counts, 2.0, "iris@1", "iris")]
    measures = Measures(models_max=1, now_s=lambda: 0.0)
    for model in ("iris@1", "iris@1", "rose@1", "tulip@1"):  # and one by each `scrape`
        measures.observe(loading, 7.0, model)
    seen = samples(scrape(relay, export=Export(per_model=True), measures=measures).text)
    labels = (("code", "OK"), ("method", "ModelInfer"), ("modelId", "iris@1"), ("vModelId", "iris"))
    assert seen[f"{name}_count", labels] == 1

    def loads(model: str) -> float:
        return seen[f"{loading}_count", (("modelId", model), ("vModelId", ""))]

    assert (loads("iris@1"), loads("other")) == (2, 3)
    assert (f"{loading}_count", ()) not in seen
    plain = samples(scrape(relay, measures=measures).text)
    assert plain[f"{loading}_count", ()] == 6
