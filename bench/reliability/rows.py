"""One row of the table: steady load, a fault in the middle of it, and what clients, loads and registrations show of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from bench.models import ZooModel
from bench.reliability.cluster import Cluster
from bench.reliability.faults import Fault, Scene
from bench.reliability.load import Load, Outcome, Plan
from bench.reliability.registering import Registered, Registering

CALM_S = 8.0
"""Traffic before the fault, and after what settles."""
SETTLES_S = 2.0
"""After the start, and after the mending: what falls in there is in no p99 but counts as failure and for the recovery."""
SLOW_S = 1.0
"""An answer later than that counts as not recovered."""
PROBE_S = 1.0
TOLD_MAX = 5


@dataclass(frozen=True, slots=True)
class Row:
    """`failed` are requests that failed though nobody would excuse it. `apart` failed or took more than a second because they
    were sent to the very instance that was struck, `cold` because their models could not be loaded then: no other figure has
    them. `recovered_s` counts from the strike to the last request that failed or took more than a second. `broken` are the
    promises that did not hold, in sentences; `told` has the first errors."""

    name: str
    says: str
    lasted_s: float
    requests: int
    failed: int
    apart: int
    cold: int
    wrong: int
    p99_before_ms: float
    p99_during_ms: float
    p99_after_ms: float
    max_ms: float
    recovered_s: float
    recovered_after_mending_s: float
    loads_during: int
    loads_after: int
    registered: Registered
    broken: Sequence[str]
    told: Sequence[str]


def play(
    fault: Fault, cluster: Cluster, models: Sequence[ZooModel], per_second: float, calm_s: float = CALM_S
) -> Row:
    """Raises RuntimeError or TimeoutError when the harness itself fails, of which an instance that does not start is one case."""
    scene = Scene(cluster, models, cluster.folder, fault.lasts_s)
    with Load(Plan(cluster.ready(), models, per_second)) as load:
        with (
            Registering(lambda: cluster.running, f"late-{fault.name}", models[0].name) as registering,
            _balanced(load, cluster),
        ):
            began_s = time.monotonic()
            time.sleep(calm_s)
            loads = [_loads(cluster)]
            fault.play(scene)
            loads.append(_loads(cluster))
            time.sleep(max(0.0, scene.mended_s + SETTLES_S + calm_s - time.monotonic()))
            loads.append(_loads(cluster))
        load.stop()
    registered = registering.look(cluster.running)
    return judged(fault, scene, began_s, load.outcomes, loads, registered)


@contextmanager
def _balanced(load: Load, cluster: Cluster) -> Iterator[None]:
    """Tell clients which instances are ready, every second."""
    ended = threading.Event()

    def probe() -> None:
        while not ended.wait(PROBE_S):
            load.tell_ready(cluster.ready())

    thread = threading.Thread(target=probe, name="readiness")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _loads(cluster: Cluster) -> dict[str, int]:
    return cluster.totals("loads_total")


def _grown(earlier: dict[str, int], later: dict[str, int]) -> int:
    """Loads between two looks. An instance that began anew in between counts from zero."""
    return sum(
        count - earlier.get(name, 0) if count >= earlier.get(name, 0) else count
        for name, count in later.items()
    )


def judged(
    fault: Fault,
    scene: Scene,
    began_s: float,
    outcomes: Sequence[Outcome],
    loads: Sequence[dict[str, int]],
    registered: Registered,
) -> Row:
    """What it all means."""
    cold = [each for each in outcomes if each.error and scene.excuses_model(each.model, each.at_s)]
    apart = [each for each in outcomes if not _well(each) and scene.excuses_entry(each.entry, each.at_s)]
    excused = {id(each) for each in (*cold, *apart)}
    counted = [each for each in outcomes if id(each) not in excused]
    failed = [each for each in counted if each.error]
    wrong = [each for each in outcomes if each.wrong]
    again = [each for each in cold if each.at_s >= scene.mended_s]
    late = [each.ended_s for each in (*counted, *again) if not _well(each) and each.ended_s > scene.struck_s]
    last_s = max(late, default=scene.struck_s)
    loads_during, loads_after = _grown(loads[0], loads[1]), _grown(loads[1], loads[2])

    broken = []
    allowed = fault.failures_max * len(outcomes)
    if len(failed) > allowed:
        broken.append(f"{len(failed)} requests failed, {allowed:.0f} may")
    if wrong:
        broken.append(f"{len(wrong)} answers were wrong")
    if registered.lost:
        broken.append(f"{len(registered.lost)} acknowledged registrations are lost ({registered.lost[0]})")
    if loads_after > len(scene.models):
        broken.append(f"{loads_after} loads after it was mended")
    return Row(
        fault.name,
        fault.says,
        scene.mended_s - scene.struck_s,
        len(outcomes),
        len(failed),
        len(apart),
        len(cold),
        len(wrong),
        _p99_ms(counted, began_s + SETTLES_S, scene.struck_s),
        _p99_ms(counted, scene.struck_s, scene.mended_s),
        _p99_ms(counted, scene.mended_s + SETTLES_S, math.inf),
        max((each.took_s * 1000 for each in counted if each.good), default=0.0),
        max(0.0, last_s - scene.struck_s),
        max(0.0, last_s - scene.mended_s),
        loads_during,
        loads_after,
        registered,
        broken,
        [_told(each, scene) for each in (*failed, *wrong)[:TOLD_MAX]],
    )


def _well(each: Outcome) -> bool:
    return each.good and each.took_s <= SLOW_S


def _p99_ms(outcomes: Sequence[Outcome], from_s: float, to_s: float) -> float:
    """Of those that were due in between and answered."""
    took_ms = [each.took_s * 1000 for each in outcomes if from_s <= each.at_s < to_s and not each.error]
    return float(np.percentile(took_ms, 99)) if took_ms else float("nan")


def _told(each: Outcome, scene: Scene) -> str:
    when = each.at_s - scene.struck_s
    return f"{when:+.2f} s, {each.model} at {each.entry}, {each.took_s:.2f} s: {each.error or each.wrong}"
