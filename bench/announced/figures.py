"""The two figures: many models resident under many requests, and far more registered than memory holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from bench.announced.clients import Answered, at_once, steadily
from bench.models import ZooModel, zoo
from bench.procs import pss_bytes, tree
from bench.reliability.cluster import Cluster, Shape
from bench.reliability.network import Network

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Figure:
    """`facts` are name and value, for people; `broken` are promises that did not hold, in sentences."""

    name: str
    facts: Sequence[tuple[str, str]]
    answered: Sequence[Answered]
    broken: Sequence[str]


def resident(
    network: Network,
    folder: Path,
    console: Console,
    *,
    n_models: int,
    n_at_once: int,
    rate: float,
    seconds: float,
) -> Figure:
    """All models loaded in two instances, each asked through both; then many requests at a time, and a steady rate."""
    made = zoo(n_models, kinds=("sklearn-linear",), console=console)
    shape = Shape(n_instances=2, n_etcd=1, etcd_bytes=2**31, memory="2GiB", name="two-")
    with Cluster(shape, network, made.models, folder) as cluster:
        _register(cluster, made.index)
        began_s = time.monotonic()
        with console.status(f"Loading {n_models:,} models, each by its first request"):
            cluster.warm(made.index)
        loading_s = time.monotonic() - began_s
        addresses = cluster.ready()
        with console.status("Asking"):
            answered = [
                steadily(addresses, made.index, rate, seconds),
                at_once(addresses, made.index, n_at_once, seconds),
            ]
        n_loaded = cluster.totals("models_loaded")
        loads = cluster.totals("loads_total")
        sizes_bytes = _sizes_bytes(cluster)
    facts = [
        ("models registered and loaded, each with coefficients of its own", f"{n_models:,}"),
        ("loaded by their first requests at", f"{n_models / loading_s:,.0f}/s"),
        ("copies in each instance", " and ".join(f"{count:,}" for count in n_loaded.values())),
        ("loads in all", f"{sum(loads.values()):,}"),
        (
            "memory of instance and worker (PSS)",
            " and ".join(f"{size / MIB:,.0f} MiB" for size in sizes_bytes),
        ),
    ]
    broken = _broken(answered)
    if sum(n_loaded.values()) < n_models:
        broken.append(f"only {sum(n_loaded.values()):,} copies are loaded")
    return Figure("resident", facts, answered, broken)


def registered(
    network: Network,
    folder: Path,
    console: Console,
    *,
    n_models: int,
    n_instances: int,
    rate: float,
    n_at_once: int,
    seconds: float,
) -> Figure:
    """Far more models than fit, asked by Zipf's law through all instances. A thousand files serve for all of them."""
    made = zoo(1_000, kinds=("sklearn-wide",), size_bytes_max=2 << 20, console=console)
    index = [replace(made.index[n % len(made.index)], name=f"m{n:06d}") for n in range(n_models)]
    shape = Shape(n_instances=n_instances, n_etcd=1, etcd_bytes=2**32, memory="192MiB", name="many-")
    with Cluster(shape, network, made.models, folder) as cluster:
        began_s = time.monotonic()
        with console.status(f"Registering {n_models:,} models"):
            _register(cluster, index, [made.index[n % len(made.index)].name for n in range(n_models)])
            registering_s = time.monotonic() - began_s
            _until_all_know(cluster, n_models)
        known_s = time.monotonic() - began_s - registering_s
        mirroring_s = _new_instance_s(cluster)
        addresses = cluster.ready()
        with console.status("Asking"):
            answered = [
                at_once(addresses, index, n_at_once, seconds),
                steadily(addresses, index, rate, seconds),
            ]
        totals = {name: cluster.totals(name) for name in ("models_loaded", "loads_total", "evictions_total")}
        capacity_bytes = sum(member.ledger("capacity_bytes") for member in cluster.running)
        loaded_bytes = sum(member.ledger("loaded_bytes") for member in cluster.running)
        sizes_bytes = _sizes_bytes(cluster)
    n_loaded = sum(totals["models_loaded"].values())
    n_asked = sum(each.asked for each in answered)
    n_loads = sum(totals["loads_total"].values())
    needed_bytes = loaded_bytes / max(1, n_loaded) * n_models
    times = needed_bytes / capacity_bytes
    facts = [
        ("models registered", f"{n_models:,}"),
        ("registered through one instance at", f"{n_models / registering_s:,.0f}/s"),
        (f"known to all {n_instances} after", f"{known_s:.1f} s more"),
        ("a new instance, from command to ready", f"{mirroring_s:.1f} s"),
        ("memory for models, of all instances", f"{capacity_bytes / MIB:,.0f} MiB"),
        ("what all models together would need", f"{needed_bytes / MIB:,.0f} MiB ({times:.1f} times as much)"),
        ("copies loaded at the end", f"{n_loaded:,}"),
        ("loads", f"{n_loads:,} ({n_loads / max(1, n_asked):.0%} of the requests)"),
        ("evictions", f"{sum(totals['evictions_total'].values()):,}"),
        ("memory of instance and worker (PSS), median", f"{statistics.median(sizes_bytes) / MIB:,.0f} MiB"),
    ]
    return Figure("registered", facts, answered, _broken(answered))


def _register(cluster: Cluster, index: Sequence[ZooModel], paths: Sequence[str] = ()) -> None:
    """`paths` are the models' folders, by default their names."""
    product = cluster.running[0].product
    assert product is not None
    folders = paths or [model.name for model in index]
    product.register(
        {"id": model.name, "type": "sklearn", "path": path}
        for model, path in zip(index, folders, strict=True)
    )


def _until_all_know(cluster: Cluster, n_models: int) -> None:
    """TimeoutError after a minute."""
    ends_s = time.monotonic() + 60
    while set(cluster.totals("models_registered").values()) != {n_models}:
        if time.monotonic() > ends_s:
            raise TimeoutError(
                f"not every instance knows {n_models:,} models: {cluster.totals('models_registered')}"
            )
        time.sleep(0.05)


def _new_instance_s(cluster: Cluster) -> float:
    """One more instance takes the place of another."""
    began_s = time.monotonic()
    new = cluster.add()
    new.start("1")
    new.wait_ready()
    took_s = time.monotonic() - began_s
    old = cluster.members.pop(0)
    old.end()
    return took_s


def _sizes_bytes(cluster: Cluster) -> list[int]:
    return [sum(map(pss_bytes, tree(member.pid))) for member in cluster.running]


def _broken(answered: Sequence[Answered]) -> list[str]:
    errors, wrong = sum(each.errors for each in answered), sum(each.wrong for each in answered)
    found = [(errors, "requests failed"), (wrong, "answers were wrong")]
    return [f"{count:,} {what}" for count, what in found if count]
