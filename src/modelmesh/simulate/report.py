"""The runs of a simulation, and how much memory is enough; both as values that become JSON (docs/simulate.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from modelmesh.settings.sizes import format_size
from modelmesh.simulate.bound import Bound, Bounds
from modelmesh.simulate.engine import Replay
from modelmesh.simulate.outcome import Outcome, Rule, Setup
from modelmesh.simulate.trace import Trace

PRECISION: Final = 1.02
"""The memory found is at most so many times the least that was seen to be too little."""

Stage = Callable[[str, int], Callable[[int], None]]
"""Begin a stage of so many steps, described; the result is told of steps done."""


@dataclass(frozen=True, slots=True)
class Run:
    """One setup's outcome, and the bound for its memory."""

    outcome: Outcome
    bound: Bound
    lru_load_s: float | None
    """What LRU loads on the same memory and instances; None when it was not asked for."""

    def as_json(self) -> dict[str, Any]:
        outcome = self.outcome
        setup = outcome.setup
        return {
            "rule": str(setup.rule),
            "memory_bytes": setup.memory_bytes,
            "instances": setup.instances,
            "requests": outcome.requests,
            "warm": outcome.warm,
            "warm_share": outcome.warm_share,
            "joined": outcome.joined,
            "misses": outcome.misses,
            "first_uses": outcome.first_uses,
            "too_large": outcome.too_large,
            "load_s": outcome.load_s,
            "load_s_of_lru": self.lru_load_s,
            "wait_mean_s": outcome.wait_mean_s,
            "wait_p99_s": outcome.wait_p99_s,
            "wait_max_s": outcome.wait_max_s,
            "load_slots_busy": outcome.slots_busy,
            "lru_share": outcome.lru_share,
            "thrashing": outcome.thrashing,
            "bound_misses": self.bound.misses,
            "bound_load_s": self.bound.load_s,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """How much memory a share of warm requests needs."""

    rule: Rule
    instances: int
    wanted_share: float
    memory_bytes: int | None
    """Of all instances; None when no memory is enough."""
    reached_share: float
    """With that memory; with room for all models when there is None."""
    first_uses_share: float
    """Of the requests, those that are their model's first: never warm."""

    def sentence(self) -> str:
        wanted = f"{self.wanted_share * 100:.4g} %"
        spread = f" over {self.instances} instances" if self.instances > 1 else ""
        if self.memory_bytes is None:
            return (
                f"No memory makes {wanted} warm under {self.rule}{spread}: with room for all models it is "
                f"{_percent(self.reached_share)}, and {_percent(self.first_uses_share)} of the requests are the first for their "
                "model. Leave out the beginning with --warmup 20%."
            )
        return (
            f"{wanted} of the requests find their model loaded with {format_size(self.memory_bytes)}{spread} under {self.rule} "
            f"({_percent(self.reached_share)})."
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "rule": str(self.rule),
            "instances": self.instances,
            "wanted_share": self.wanted_share,
            "memory_bytes": self.memory_bytes,
            "reached_share": self.reached_share,
            "first_uses_share": self.first_uses_share,
            "sentence": self.sentence(),
        }


def describe(trace: Trace, source: str) -> dict[str, Any]:
    """The trace in figures."""
    return {
        "source": source,
        "requests": len(trace),
        "models": trace.models,
        "span_s": trace.span_s,
        "total_bytes": trace.total_bytes,
        "largest_bytes": trace.largest_bytes,
        "models_with_known_size": trace.named_sizes,
    }


def run_all(
    trace: Trace,
    base: Setup,
    memories_bytes: Sequence[int],
    rules: Sequence[Rule],
    instances: Sequence[int],
    stage: Stage,
) -> list[Run]:
    """Every combination, in the order given: instances, then memory, then rules."""
    next_use = trace.next_use()
    bounds = Bounds(trace, next_use, base.warmup)
    runs = []
    for count, memory_bytes in product(instances, memories_bytes):
        bound = bounds.at(memory_bytes, count)
        outcomes = []
        for rule in rules:
            setup = replace(base, memory_bytes=memory_bytes, instances=count, rule=rule)
            advance = stage(f"{rule}, {format_size(memory_bytes)}", len(trace))
            outcomes.append(Replay(trace, setup, next_use).run(advance))
        lru_load_s = next((one.load_s for one in outcomes if one.setup.rule is Rule.LRU), None)
        runs += [Run(outcome, bound, lru_load_s) for outcome in outcomes]
    return runs


def memory_for(trace: Trace, base: Setup, wanted_share: float, stage: Stage) -> Answer:
    """The least memory, to 2 %, with which the share of requests is warm under the rule and instances of `base`.

    Looked for between what the bound shows to be too little and what holds everything."""
    next_use = trace.next_use()

    def outcome_at(memory_bytes: int) -> Outcome:
        setup = replace(base, memory_bytes=memory_bytes)
        return Replay(trace, setup, next_use).run(
            stage(f"{base.rule}, {format_size(memory_bytes)}", len(trace))
        )

    def answer(memory_bytes: int | None, outcome: Outcome) -> Answer:
        first = outcome.first_uses / max(outcome.requests, 1)
        return Answer(base.rule, base.instances, wanted_share, memory_bytes, outcome.warm_share, first)

    high = trace.total_bytes + base.instances * trace.largest_bytes
    best = outcome_at(high)
    if best.warm_share < wanted_share:
        return answer(None, best)
    low = _too_little(trace, Bounds(trace, next_use, base.warmup), base.instances, wanted_share, high)
    if (at_low := outcome_at(low)).warm_share >= wanted_share:
        return answer(low, at_low)
    while high > low * PRECISION and high - low > 1:
        middle = round((high * low) ** 0.5)
        outcome = outcome_at(middle)
        if outcome.warm_share >= wanted_share:
            high, best = middle, outcome
        else:
            low = middle
    return answer(high, best)


def _too_little(trace: Trace, bounds: Bounds, instances: int, wanted_share: float, high: int) -> int:
    """The most memory with which the bound allows no such share; at least the largest model in each instance."""
    requests = len(trace) - int(len(trace) * bounds.warmup)
    low = max(trace.largest_bytes * instances, 1)
    while high > low * PRECISION and high - low > 1:
        middle = round((high * low) ** 0.5)
        if 1.0 - bounds.at(middle, instances).misses / requests >= wanted_share:
            high = middle
        else:
            low = middle
    return low


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"
