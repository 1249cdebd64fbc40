"""The page of compatibility tells of every metric of the predecessor, and what it says is what is exported."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest

from modelmesh.dataplane.protocol import Histogram
from modelmesh.errors import Code
from modelmesh.mesh.views import MeshCount
from modelmesh.ops.metrics import PREDECESSOR, TABLE, InstanceCollector
from modelmesh.ops.statsd import GAUGES, NOTHING, changes, see, standing
from modelmesh.settings.predecessor import TABLE as VARIABLES
from modelmesh.testing.control import FakeControlPlane
from modelmesh.testing.ops import QuietRelay, parts_over

PAGE = (Path(__file__).parents[3] / "docs" / "compatibility.md").read_text()
NAMED = [
    "modelmesh_invoke_model_milliseconds",
    "modelmesh_invoke_model",
    "modelmesh_api_request_milliseconds",
    "modelmesh_api_request",
    "modelmesh_request_size_bytes",
    "modelmesh_response_size_bytes",
    "modelmesh_cache_miss_milliseconds",
    "modelmesh_cache_miss",
    "modelmesh_loadmodel_milliseconds",
    "modelmesh_loadmodel",
    "modelmesh_loadmodel_failure",
    "modelmesh_unloadmodel_milliseconds",
    "modelmesh_unloadmodel",
    "modelmesh_unloadmodel_failure",
    "modelmesh_unloadmodel_attempt_failure",
    "modelmesh_req_queue_delay_milliseconds",
    "modelmesh_loading_queue_delay_milliseconds",
    "modelmesh_model_sizing_milliseconds",
    "modelmesh_age_at_eviction_milliseconds",
    "modelmesh_model_evicted",
    "modelmesh_loaded_model_size_bytes",
    "modelmesh_models_loaded_total",
    "modelmesh_models_with_failure_total",
    "modelmesh_models_managed_total",
    "modelmesh_instance_lru_seconds",
    "modelmesh_instance_lru_age_seconds",
    "modelmesh_instance_capacity_bytes",
    "modelmesh_instance_used_bytes",
    "modelmesh_instance_used_bps",
    "modelmesh_instance_models_total",
    "netty_pool_mem_allocated_bytes",
    "netty_pool_mem_used_bytes",
    "jvm_gc_collection_seconds",
    "jvm_buffer_pool_used_bytes",
    "jvm_buffer_pool_capacity_bytes",
    "jvm_buffer_pool_used_buffers",
    "jvm_memory_bytes_used",
    "jvm_memory_bytes_committed",
    "jvm_memory_bytes_max",
    "jvm_memory_bytes_init",
    "jvm_memory_pool_bytes_used",
    "jvm_memory_pool_bytes_committed",
    "jvm_memory_pool_bytes_max",
    "jvm_memory_pool_bytes_init",
    "jvm_memory_pool_allocated_bytes_total",
]
"""Reference mesh.md 10.3, word for word."""


def rows(section: str) -> dict[str, str]:
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (same|better|not carried) \|", text, re.MULTILINE))


def exported() -> set[str]:
    """All that one way or the other shows, once something of each kind has happened."""
    relay = QuietRelay()
    parts = parts_over(FakeControlPlane(), relay)
    for family in PREDECESSOR:
        if family.name in parts.measures.histograms:
            parts.measures.observe(family.name, 1.0)
        elif family.kind == "histogram":
            counts = [1, *[0] * len(family.buckets)]
            relay.observed.append(Histogram(family.name, "pkg.Service/Method", Code.OK, counts, 0.1))
    text = generate_latest(InstanceCollector(parts, MeshCount(3, 2, 1, 1, 4))).decode()
    sent = [*changes(NOTHING, see(parts), legacy=False), *standing(dict.fromkeys(GAUGES, 0.0), legacy=False)]
    shown = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    return shown | {line.partition("_statsd")[0] for line in sent}


def test_every_metric_of_the_predecessor_has_a_row_that_is_true() -> None:
    told = rows("Metrics")
    assert set(told) == set(NAMED)
    shown = exported()
    assert {name for name, verdict in told.items() if verdict != "not carried"} == set(told) & shown
    assert {family.name for family in PREDECESSOR} <= set(told)
    assert shown - set(told) <= set(TABLE)


@pytest.mark.parametrize("per_model", [False, True])
def test_labels_are_those_of_the_page(per_model: bool) -> None:
    parts = parts_over(FakeControlPlane())
    parts = replace(parts, export=replace(parts.export, per_model=per_model))
    parts.measures.models_max = 1
    parts.measures.observe("modelmesh_loadmodel_milliseconds", 1.0, "iris@1")
    text = generate_latest(InstanceCollector(parts, MeshCount(3, 2, 1, 1, 4))).decode()
    labels = '{modelId="iris@1",vModelId=""}' if per_model else ""
    assert f"modelmesh_loadmodel_milliseconds_count{labels} 1.0" in text


def test_the_ports_tell_of_every_variable_that_opens_one() -> None:
    section = PAGE.partition("## Ports\n")[2].partition("\n## ")[0]
    variables = {name for row in VARIABLES for name in row.names}
    told = set(re.findall(r"`(MM_\w+)", section))
    assert told == {"MM_SVC_GRPC_PORT", "MM_PROBE_PORT", "MM_PRESTOP_WAIT_PORT", "MM_METRICS"}
    assert told <= variables
