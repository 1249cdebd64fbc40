"""The soak: thousands of real models in a fraction of their memory, every answer checked: `python -m bench.soak`, `make soak`.

Serves a zoo as a user would, sends Zipf traffic with a sweep over all models in the middle, and watches from outside: the clients
compare every answer with the model's own prediction, and the workers' memory is read from /proc many times a second.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import page, report, traffic
from bench.load import Target
from bench.makers import KINDS
from bench.models import Zoo, ZooModel, describe, zoo
from bench.procs import end_by_exception, pss_bytes
from bench.product import Product, serving

MIB = 2**20
SAMPLE_S = 0.1
SAMPLES_PER_S_MIN = 4
OVER_BUDGET_MAX = 1.05
ABOVE_BASE_MAX = 1.10


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, what was found, and whether it holds."""

    what: str
    found: str
    wanted: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of the traffic, in short."""

    name: str
    seconds: float
    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a soak found. `told` has the first errors and wrong answers in words."""

    checks: Sequence[Check]
    phases: Sequence[Phase]
    told: Sequence[str]

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)


class PssWatch:
    """Samples the workers' summed PSS at each call, at most one per `SAMPLE_S`; sleeps in between."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self._next_s = time.monotonic()
        self.samples_bytes: list[int] = []

    def __call__(self) -> None:
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        self._next_s = time.monotonic() + SAMPLE_S
        self.samples_bytes.append(workers_pss_bytes(self._product))


def workers_pss_bytes(product: Product) -> int:
    return sum(pss_bytes(pid) for pid in product.workers)


def soak(
    models: Zoo,
    *,
    budget_bytes: int,
    workers: int = 2,
    seconds: float = 60,
    n_clients: int = 64,
    samples_min: int = 240,
    evictions_min: int = 1000,
    overcommit_min: float = 6,
    seed: int = 1,
) -> Result:
    """Run it. RuntimeError when the server does not start or dies, TimeoutError when the clients get stuck."""
    with serving(models.models, memory=str(budget_bytes), workers=workers) as product:
        warm(product, models.index)
        base_bytes = settled_pss_bytes(product)
        watch = PssWatch(product)
        plan = traffic.Plan(product.grpc, models.index, seconds, n_clients, seed)
        tallies = traffic.run(plan, timeout_s=4 * seconds + 120, while_waiting=watch)
        instance = product.get("/instance")
        measured_bytes = sum(model["size_bytes"] for model in listed(product))
        after_bytes = settled_pss_bytes(product)
        # Shown, not judged by: it is the word of what is being tested.
        told_bytes = sum(worker["base_bytes"] for worker in product.get("/instance")["workers"])
    peak_bytes = max(watch.samples_bytes)
    n_asked, n_errors = sum(tally.asked for tally in tallies), sum(tally.n_errors for tally in tallies)
    n_wrong = sum(tally.n_wrong for tally in tallies)
    overcommit = measured_bytes / budget_bytes
    checks = (
        Check("errors", f"{n_errors} of {n_asked:,} requests", "0", n_errors == 0),
        Check("answers that are not the model's own", f"{n_wrong}", "0", n_wrong == 0),
        Check(
            "peak of the workers' PSS",
            f"{peak_bytes / MIB:.0f} MiB ({peak_bytes / budget_bytes:.1%} of the budget)",
            f"≤ {OVER_BUDGET_MAX:.0%}",
            peak_bytes <= budget_bytes * OVER_BUDGET_MAX,
        ),
        Check(
            "samples of the PSS under traffic",
            f"{len(watch.samples_bytes):,}",
            f"≥ {samples_min:,}",
            len(watch.samples_bytes) >= samples_min,
        ),
        Check(
            "evictions",
            f"{instance['evictions_total']:,} (of {instance['loads_total']:,} loads)",
            f"≥ {evictions_min:,}",
            instance["evictions_total"] >= evictions_min,
        ),
        Check(
            "models in memory, as measured",
            f"{measured_bytes / MIB:,.0f} MiB ({overcommit:.1f} × the budget)",
            f"≥ {overcommit_min} ×",
            overcommit >= overcommit_min,
        ),
        Check(
            "PSS when all is unloaded",
            f"{after_bytes / MIB:.0f} MiB ({after_bytes / base_bytes:.1%} of the base, {base_bytes / MIB:.0f} MiB; "
            f"it says {told_bytes / MIB:.0f} MiB)",
            f"≤ {ABOVE_BASE_MAX:.0%}",
            after_bytes <= base_bytes * ABOVE_BASE_MAX,
        ),
    )
    told = [each for tally in tallies for each in (*tally.errors, *tally.wrong)]
    return Result(checks, [_phase(tally) for tally in tallies], told)


def _phase(tally: traffic.Tally) -> Phase:
    latencies_ms = sorted(tally.latencies_ms) or [float("nan")]
    cuts = statistics.quantiles(latencies_ms, n=100) if len(latencies_ms) > 1 else latencies_ms * 99
    rate = len(tally.latencies_ms) / tally.seconds
    return Phase(tally.phase, tally.seconds, tally.asked, rate, cuts[49], cuts[98], latencies_ms[-1])


LIBRARIES = {
    "sklearn": "/sklearn/",
    "xgboost": "libxgboost",
    "lightgbm": "lib_lightgbm",
    "onnx": "onnxruntime",
}
"""What of a framework shows among the files that a process maps."""


def warm(product: Product, index: Sequence[ZooModel], *, timeout_s: float = 60) -> None:
    """Make every worker import every format, and see that it did: models of each kind are asked, small ones first, for a format
    spreads to a further worker only when the first holds more bytes than the import costs. TimeoutError when it does not."""
    deadline_s = time.monotonic() + timeout_s
    waiting = {
        framework: [model for model in index if KINDS[model.kind].framework == framework]
        for framework in LIBRARIES
    }
    for models in waiting.values():
        models.sort(key=lambda model: model.size_bytes, reverse=True)
    while missing := [name for name in LIBRARIES if waiting[name] and not _imported(product, name)]:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"Not every worker imported {', '.join(missing)} within {timeout_s:g} s.")
        asked = [waiting[name].pop() for name in missing for _ in range(min(8, len(waiting[name])))]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda model: Target(product.grpc, traffic.request(model, 0), {}).ask(), asked))


def _imported(product: Product, framework: str) -> bool:
    return all(LIBRARIES[framework] in Path(f"/proc/{pid}/maps").read_text() for pid in product.workers)


def listed(product: Product, **parameters: str) -> list[dict]:
    """All models the instance lists, page by page."""
    models: list[dict] = []
    after = ""
    while True:
        page = product.get("/models", limit=250, after=after, **parameters)
        models += page["models"]
        after = page["next_after"]
        if not after:
            return models


def settled_pss_bytes(product: Product, *, timeout_s: float = 20) -> int:
    """The workers' PSS once everything is unloaded and it stopped falling."""
    with ThreadPoolExecutor(8) as threads:
        list(
            threads.map(
                lambda model: product.post(f"/models/{model['id']}:unload"), listed(product, state="loaded")
            )
        )
    least_bytes, deadline_s, fell_s = 2**63, time.monotonic() + timeout_s, time.monotonic()
    while time.monotonic() < min(deadline_s, fell_s + 3):
        now_bytes = workers_pss_bytes(product)
        if now_bytes < least_bytes * 0.995:
            least_bytes, fell_s = now_bytes, time.monotonic()
        time.sleep(0.2)
    return workers_pss_bytes(product)


HEADINGS = ("promise", "found", "wanted", "holds")


def _lines(result: Result) -> list[list[str]]:
    """The checks, under HEADINGS."""
    return [
        [check.what, check.found, check.wanted, "yes" if check.holds else "NO"] for check in result.checks
    ]


def show(result: Result, console: Console) -> None:
    phases = Table("traffic", "seconds", "requests", "per second", "p50 ms", "p99 ms", "max ms")
    for phase in result.phases:
        figures = (phase.seconds, phase.requests, phase.per_second, phase.p50_ms, phase.p99_ms, phase.max_ms)
        phases.add_row(
            phase.name,
            *(f"{figure:,.1f}" if isinstance(figure, float) else f"{figure:,}" for figure in figures),
        )
    checks = Table(*HEADINGS)
    for check, line in zip(result.checks, _lines(result), strict=True):
        checks.add_row(*line, style=None if check.holds else "red")
    console.print(phases, checks)
    for sentence in result.told:
        console.print(sentence, markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--memory-mib", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60, help="of Zipf traffic; the sweep comes on top")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--evictions", type=int, default=1000, help="how many there must be at least")
    parser.add_argument("--overcommit", type=float, default=6, help="models' bytes ÷ budget, at least")
    parser.add_argument("--seed", type=int, default=1, help="of the zoo and of the traffic")
    parser.add_argument(
        "--write", action="store_true", help="replace the soak's section of docs/benchmarks.md"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    end_by_exception()
    console = report.console(stderr=arguments.json)
    sitting = page.Sitting.now(shlex.join(["python", "-m", "bench.soak", *sys.argv[1:]]))
    models = zoo(arguments.models, seed=arguments.seed, console=console)
    console.print(describe(models.index), f"on {arguments.memory_mib} MiB", f"(seed {arguments.seed})")
    with console.status("Soaking: Zipf, a sweep over all models, Zipf"):
        result = soak(
            models,
            budget_bytes=arguments.memory_mib * MIB,
            workers=arguments.workers,
            seconds=arguments.seconds,
            n_clients=arguments.clients,
            samples_min=round(arguments.seconds * SAMPLES_PER_S_MIN),
            evictions_min=arguments.evictions,
            overcommit_min=arguments.overcommit,
            seed=arguments.seed,
        )
    show(result, console)
    if arguments.write:
        page.write({"soak": sitting.section(HEADINGS, _lines(result))})
        console.print(f"Written: {page.PAGE}")
    if arguments.json:
        print(json.dumps({**asdict(result), "holds": result.holds}, indent=1))
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
