"""Copies in several real instances: kept in different zones, and more of them for a model in demand."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from modelmesh.testing.etcd import Etcd, missing
from modelmesh.testing.serving import Served, until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

ZONES = {"a": "z1", "b": "z1", "c": "z2"}
SLOW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [101.0, 0.0, 0.0, 0.0]}]}
"""Takes the model 20 ms."""


@pytest.fixture
def instances(strange: Callable[..., Path], tmp_path: Path) -> Iterator[dict[str, Served]]:
    folder = tmp_path / "models" / "iris"
    folder.mkdir(parents=True)
    shutil.move(strange("iris", trouble="sleep 0.02"), folder / "model.strange")
    with Etcd(tmp_path / "etcd") as etcd:
        flags = ("--store", f"etcd:{etcd.endpoints}", "--service", "demo", "--model-root", str(folder.parent))
        size = ("--memory", "300MiB", "--workers", "1", "--grace", "5", "--peer-port", "0")
        started = {
            id: Served(tmp_path / id, *flags, *size, "--instance-id", id, "--zone", zone)
            for id, zone in ZONES.items()
        }
        try:
            for instance in started.values():
                instance.wait_ready()
            until(lambda: all(len(about(each)) == 3 for each in started.values()), "all have met")
            yield dict(started)
        finally:
            for instance in started.values():
                instance.kill_all()


def about(instance: Served) -> list[dict[str, object]]:
    """The instances it knows, itself included."""
    found: list[dict[str, object]] = httpx.get(f"{instance.ops}/instances", timeout=30).json()["instances"]
    return found


def register(instance: Served, model: str, **keep: int) -> None:
    path = str(instance.scratch.parent / "models" / "iris")
    body = {"type": "strange", "path": path, **keep}
    assert httpx.put(f"{instance.ops}/models/{model}", json=body, timeout=30).is_success


def holders(instances: dict[str, Served]) -> set[str]:
    """Those that hold anything."""
    asked = {
        id: httpx.get(f"{each.ops}/instance", timeout=30).json()["models_loaded"]
        for id, each in instances.items()
    }
    return {id for id, loaded in asked.items() if loaded}


def test_copies_are_kept_in_different_zones_and_restored_when_one_is_killed(
    instances: dict[str, Served],
) -> None:
    register(instances["a"], "kept", min_copies=2)
    until(lambda: len(holders(instances)) == 2, "two copies")
    assert {ZONES[id] for id in holders(instances)} == {"z1", "z2"}
    (dying,) = (id for id in holders(instances) if ZONES[id] == "z1")
    instances.pop(dying).process.send_signal(signal.SIGKILL)
    began_s = time.monotonic()
    until(lambda: len(holders(instances)) == 2, "the copy is restored", 60.0)
    print(f"restored within {time.monotonic() - began_s:.1f} s")


def test_a_model_in_demand_is_served_by_more_instances(instances: dict[str, Served]) -> None:
    entry = instances["a"]
    register(entry, "hot")
    url = f"{entry.rest}/v2/models/hot/infer"
    assert httpx.post(url, json=SLOW, timeout=60).status_code == 200
    (first,) = holders(instances)
    over, codes = threading.Event(), list[int]()

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                codes.append(client.post(url, json=SLOW).status_code)

    clients = [threading.Thread(target=ask) for _ in range(8)]
    began_s = time.time()
    for client in clients:
        client.start()
    try:
        until(lambda: len(holders(instances)) >= 2, "a second copy", 60.0)
        until(lambda: all(served(instances[id]) > 20 for id in holders(instances)), "its share of the load")
    finally:
        over.set()
        for client in clients:
            client.join(60)
    assert set(codes) == {200}
    entries = httpx.get(f"{instances[first].ops}/journal?model=hot&limit=500", timeout=30).json()["entries"]
    decided_s = next(entry["at_unix_s"] for entry in entries if entry["did"] == "scaled") - began_s
    print(f"decided {decided_s * 1000:.0f} ms after the first request")


def served(instance: Served) -> int:
    """Requests for the model hot, by the copy there."""
    total: int = httpx.get(f"{instance.ops}/models/hot", timeout=30).json()["requests_total"]
    return total
