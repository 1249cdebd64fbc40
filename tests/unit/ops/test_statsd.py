"""Metrics to statsd: names, tags, values that add up, packets that fit, and what happens when nobody is there."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
from dataclasses import replace

import pytest

from modelmesh.dataplane.protocol import Histogram
from modelmesh.errors import Code
from modelmesh.mesh.measures import MILLISECONDS
from modelmesh.ops import statsd
from modelmesh.ops.metrics import PREDECESSOR
from modelmesh.ops.parts import Parts
from modelmesh.ops.statsd import COUNTERS, DISTRIBUTIONS, GAUGES, NOTHING, changes, packets, see, spread
from modelmesh.settings.exporting import Export, Statsd
from modelmesh.testing.control import FakeControlPlane
from modelmesh.testing.ops import QuietRelay, parts_over

METHOD = "inference.GRPCInferenceService/ModelInfer"
API = "modelmesh_api_request_milliseconds"


def busy() -> tuple[Parts, QuietRelay]:
    relay = QuietRelay()
    relay.observed = [
        Histogram(API, METHOD, Code.OK, [0, 3, *[0] * 18], 2.4),
        Histogram(API, METHOD, Code.NOT_FOUND, [1, *[0] * 19], 0.2),
        Histogram("modelmesh_request_size_bytes", METHOD, Code.NOT_FOUND, [1, *[0] * 8], 20.0),
    ]
    return parts_over(FakeControlPlane(), relay), relay


def test_all_of_the_predecessors_metrics_are_sent_and_no_other() -> None:
    assert {*DISTRIBUTIONS, *COUNTERS, *GAUGES} == {family.name for family in PREDECESSOR}


def test_lines_have_the_predecessors_names() -> None:
    parts, _ = busy()
    parts.measures.observe("modelmesh_loadmodel_milliseconds", 7.0)
    parts.measures.count("modelmesh_loadmodel_failure", 2)
    assert list(changes(NOTHING, see(parts), legacy=False)) == [
        "modelmesh_api_request_milliseconds_statsd,method=ModelInfer,code=OK:0.8|ms|@0.333333333",
        "modelmesh_api_request_statsd,method=ModelInfer,code=OK:3|c",
        # Calls that failed are counted, not timed.
        "modelmesh_api_request_statsd,method=ModelInfer,code=NOT_FOUND:1|c",
        "modelmesh_request_size_bytes_statsd,method=ModelInfer,code=NOT_FOUND:20|ms",
        "modelmesh_loadmodel_milliseconds_statsd:7|ms",
        "modelmesh_loadmodel_statsd:1|c",
        "modelmesh_loadmodel_failure_statsd:2|c",
    ]
    assert list(changes(NOTHING, see(parts), legacy=True)) == [
        "api-ModelInfer:0.8|ms|@0.333333333",
        "api-ModelInfer:3|c",
        "api-ModelInfer:1|c",
        "reqSize-ModelInfer:20|ms",
        "loadModel:7|ms",
        "loadModel:1|c",
        "loadModel-failed:2|c",
    ]


def test_only_what_moved_is_sent() -> None:
    parts, relay = busy()
    before = see(parts)
    assert list(changes(before, see(parts), legacy=False)) == []
    relay.observed[0] = Histogram(API, METHOD, Code.OK, [0, 3, *[0] * 17, 1], 400_002.4)
    assert list(changes(before, see(parts), legacy=True)) == [
        "api-ModelInfer:400000|ms",
        "api-ModelInfer:1|c",
    ]


def test_invented_methods_cannot_add_lines_or_tags() -> None:
    parts, relay = busy()
    relay.observed = [Histogram(API, "a/b,x=1:5|c\ny@", Code.OK, [1, *[0] * 19], 0.2)]
    full = replace(parts, export=Export(full_methods=True))
    assert list(changes(NOTHING, see(full), legacy=False))[1] == (
        "modelmesh_api_request_statsd,method=a/b_x_1_5_c_y_,code=OK:1|c"
    )


@pytest.mark.parametrize("seed", range(20))
def test_values_stay_in_their_buckets_and_add_up(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.choice((0.1, 3.0, 40.0, 9e3, 1e6)) * rng.random() for _ in range(rng.randint(1, 50))]
    counts = [0] * (len(MILLISECONDS) + 1)
    for value in values:
        counts[next((i for i, bound in enumerate(MILLISECONDS) if value <= bound), -1)] += 1
    found = spread(MILLISECONDS, counts, sum(values))
    assert sum(n for _, n in found) == len(values)
    again = [0] * len(counts)
    for value, n in found:
        again[next((i for i, bound in enumerate(MILLISECONDS) if value <= bound + 1e-9), -1)] += n
    total = sum(value * n for value, n in found)
    assert total == pytest.approx(sum(values))
    assert again == counts


def test_packets_hold_whole_lines_and_fit() -> None:
    lines = [f"name_{number}:{number}|c" for number in range(500)]
    made = list(packets(lines, 100))
    assert max(map(len, made)) <= 100
    assert b"\n".join(made).decode().splitlines() == lines
    assert list(packets(["x" * 200], 100)) == [b"x" * 200]
    assert list(packets([])) == []


def test_a_server_gets_changes_and_at_the_end_zeros() -> None:
    parts, relay = busy()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        port = server.getsockname()[1]

        async def serve() -> tuple[str, str]:
            async with statsd.sending(parts, Statsd("127.0.0.1", port, legacy=False), every_s=0.01):
                first = await asyncio.to_thread(server.recv, 65536)
            last = b""
            while not re.search(rb"capacity_bytes_statsd:0\|g", last):
                last = await asyncio.to_thread(server.recv, 65536)
            return first.decode(), last.decode()

        first, last = asyncio.run(serve())
    assert "modelmesh_api_request_statsd,method=ModelInfer,code=OK:3|c" in first
    assert "modelmesh_instance_capacity_bytes_statsd:1073741824|g" in first
    assert "modelmesh_api_request_statsd" not in last
    assert len(relay.observed) == 3


def test_gauges_of_the_mesh_are_sent_and_zeroed_by_one_instance_only() -> None:
    control = FakeControlPlane()
    control.tells_of_mesh = False
    parts = parts_over(control)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        port = server.getsockname()[1]

        async def serve() -> str:
            async with statsd.sending(parts, Statsd("127.0.0.1", port, legacy=False), every_s=0.01):
                received = await asyncio.to_thread(server.recv, 65536)
            while not re.search(rb"capacity_bytes_statsd:0\|g", received):
                received += await asyncio.to_thread(server.recv, 65536)
            return received.decode()

        received = asyncio.run(serve())
    assert "modelmesh_instance_models_total_statsd:0|g" in received
    assert "modelmesh_models_" not in received


def test_what_cannot_be_sent_is_sent_later_and_complained_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modelmesh")
    parts, _ = busy()
    sender = statsd._Sender(parts, Statsd("no such host.", 1, legacy=False))

    async def fail() -> None:
        await sender.send(dict.fromkeys(GAUGES, 0.0))
        await sender.send(dict.fromkeys(GAUGES, 0.0))

    asyncio.run(fail())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert sender._sent is NOTHING
