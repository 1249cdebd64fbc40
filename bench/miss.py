"""What a miss costs: cold models asked one at a time, split by the journal into queue, load, and what the mesh adds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as oip

from bench import traffic
from bench.load import INFER
from bench.models import tiny_models, zoo
from bench.product import Product, serving
from bench.report import Row

MEASURED_TIMES = 3
"""As the built-in runtime: so often a content is measured."""

Bodies = Mapping[str, bytes]
"""Model name -> request."""


@dataclass(frozen=True, slots=True)
class Miss:
    """One cold request. `answer_s` is what the client waited beyond a hit; the others are the journal's. `sizing_s` is what the
    worker took to measure a model that it did not know."""

    model: str
    answer_s: float
    queue_s: float
    load_s: float
    sizing_s: float

    @property
    def added_s(self) -> float:
        """Fault, decision, publishing, resume: all that is neither queue nor load nor measuring."""
        return self.answer_s - self.queue_s - self.load_s - self.sizing_s


def tiny_request(name: str) -> bytes:
    """For the models of `tiny_models`."""
    message = oip.ModelInferRequest(model_name=name)
    message.inputs.add(name="x", datatype="FP64", shape=[1, 4])
    message.raw_input_contents.append(np.array([5.1, 3.5, 1.4, 0.2]).tobytes())
    return message.SerializeToString()


def misses(product: Product, bodies: Bodies, others: Sequence[Product] = ()) -> list[Miss]:
    """Ask each model cold, then at once again hot. `others` are the instances beside this one that may load it. Raises
    grpc.RpcError when one is not answered."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(product.grpc, options=options) as channel:
        call = channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
        timed = {name: (_timed_s(call, body), _timed_s(call, body)) for name, body in bodies.items()}
    hit_s = statistics.median(hot_s for _, hot_s in timed.values())
    found = {}
    for instance in (product, *others):
        for entry in journal(instance):
            name, numbers = entry["model"].partition("@")[0], entry["numbers"]
            if entry["did"] == "loading":
                found[name] = numbers["queued_s"], 0.0, 0.0
            elif entry["did"] == "loaded":
                found[name] = found.get(name, (0.0,))[0], numbers["load_s"], numbers["sizing_s"]
    return [Miss(name, cold_s - hit_s, *found[name]) for name, (cold_s, _) in timed.items() if name in found]


def misses_again(product: Product, bodies: Bodies) -> list[Miss]:
    """Of models that were measured often enough not to be measured again: each is unloaded, and asked cold once more."""
    found: list[Miss] = []
    for _ in range(MEASURED_TIMES):
        for name in bodies:
            product.post(f"/models/{name}:unload")
        found = misses(product, bodies)
    return found


def _timed_s(call: Callable[..., bytes], body: bytes) -> float:
    started_s = time.perf_counter()
    call(body, timeout=60)
    return time.perf_counter() - started_s


def journal(product: Product) -> Iterator[dict[str, Any]]:
    """All entries, oldest first."""
    since = 0
    while True:
        page = product.get("/journal", since=since, limit=250)
        yield from page["entries"]
        if not page["entries"]:
            return
        since = page["next_since"]


def with_room(*, quick: bool) -> list[Row]:
    """Misses of models that load at once, where nothing has to be evicted."""
    tiny = tiny_models(2000, distinct=True)
    names = sorted(folder.name for folder in tiny.iterdir())[: 200 if quick else 1000]
    with serving(tiny) as product:
        _first_use(product, tiny_request(names[-1]))
        crowd = loads_of_a_crowd(product, names[-2])
        bodies = {name: tiny_request(name) for name in names[:-2]}
        first = misses(product, bodies)
        again = misses_again(product, bodies)
    what = f"tiny models, room to spare, {len(first)} misses"
    return [
        *_rows(f"{what}, loaded for the first time", first),
        *_rows(f"{what}, loaded before", again),
        Row(
            "miss", "64 cold requests for one model at once", f"{crowd} load(s)", "", crowd, 1, unit=" loads"
        ),
    ]


def _rows(what: str, found: Sequence[Miss]) -> list[Row]:
    added_ms = statistics.median(miss.added_s for miss in found) * 1000
    told = f"{added_ms:.3f} ms p50"
    return [
        Row("miss", what, _told(found), "", _answer_ms(found), unit=" ms p50"),
        Row("miss", "the same: beyond queue, load and measuring", told, "", added_ms, 0.5, 0.2, " ms"),
    ]


def with_evictions(*, quick: bool) -> list[Row]:
    """Misses of unequal models that have to evict others."""
    models = zoo(2000)
    index = models.index[: 200 if quick else 1000]
    with serving(models.models, memory="500MiB", workers=2) as product:
        for model in {model.kind: model for model in models.index}.values():
            _first_use(product, traffic.request(model, 0))
        found = misses(product, {model.name: traffic.request(model, 0) for model in index})
        evictions = product.get("/instance")["evictions_total"]
    what = f"the zoo on 500 MiB, {len(found)} misses, {evictions} evictions"
    return [Row("miss", what, _told(found), "", _answer_ms(found), unit=" ms p50")]


def loads_of_a_crowd(product: Product, name: str) -> int:
    """How often one cold model is loaded when 64 clients ask for it at once."""
    with ThreadPoolExecutor(64) as threads:
        list(threads.map(lambda _: _first_use(product, tiny_request(name)), range(64)))
    return product.get(f"/models/{name}")["loads_total"]


def _first_use(product: Product, body: bytes) -> None:
    """The first model of a format brings its library along; that is no miss to measure."""
    with grpc.insecure_channel(product.grpc) as channel:
        channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)(body, timeout=60)


def _answer_ms(found: Sequence[Miss]) -> float:
    return statistics.median(miss.answer_s for miss in found) * 1000


def _told(found: Sequence[Miss]) -> str:
    """Medians; the parts' medians need not add up to the whole's."""
    parts = {
        "queue": [miss.queue_s for miss in found],
        "load": [miss.load_s for miss in found],
        "measuring": [miss.sizing_s for miss in found],
        "mesh": [miss.added_s for miss in found],
    }
    return ", ".join(f"{name} {statistics.median(values) * 1000:.2f} ms" for name, values in parts.items())
