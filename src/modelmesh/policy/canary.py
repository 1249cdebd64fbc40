"""Whether a model that is tried out on a share of the requests takes over from the active one.

It is given up when more of its requests fail than of the active model's and chance hardly explains that (Fisher's exact test,
one-sided): at the end by less than `LEVEL`, before it, where one looks again and again, by less than `EARLY_LEVEL`; or, where
that is asked for, when it takes longer by more than a factor. Otherwise it takes over once it had its time and enough requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import exp, lgamma
from typing import Final, NamedTuple

LEVEL: Final = 0.01
EARLY_LEVEL: Final = 0.0005
EARLY_REQUESTS: Final = 10
"""Before the end nothing is said of fewer."""
PATIENCE: Final = 3.0
"""A canary with too few requests goes on for so many times its time; then what was seen decides."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened to the requests of one model meanwhile. `execution_s`: all together, as its server reports; 0 when it does
    not."""

    requests: int = 0
    errors: int = 0
    execution_s: float = 0.0

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.requests + other.requests, self.errors + other.errors, self.execution_s + other.execution_s
        )

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    @property
    def mean_s(self) -> float:
        return self.execution_s / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of a canary."""

    for_s: float
    """How long it is tried; 0: until it had its requests."""
    requests: int
    """The least it must have served."""
    slower_max: float = 0.0
    """How many times longer than the active model it may take for a request, on average; 0: not looked at."""


class Verdict(Enum):
    """What is to be done."""

    GO_ON = "go on"
    PROMOTE = "promote"
    ROLL_BACK = "roll back"


class Judgement(NamedTuple):
    """With the reason in a sentence."""

    verdict: Verdict
    reason: str


def judge(active: Seen, target: Seen, elapsed_s: float, terms: Terms) -> Judgement:
    """Look at a canary that runs since `elapsed_s`. An active model with fewer requests than the canary must have served counts
    as if it had served as many, the missing ones well: silence is no excuse for errors."""
    enough = target.requests >= terms.requests
    late = terms.for_s > 0 and elapsed_s >= PATIENCE * terms.for_s
    ends = late or (enough and elapsed_s >= terms.for_s)
    compared = f"{_rate(target)}; of the active model {_rate(active)}"
    if ends or target.requests >= EARLY_REQUESTS:
        of = max(active.requests, terms.requests)
        chance = chance_of(target.errors, target.requests, active.errors, of)
        if chance < (LEVEL if ends else EARLY_LEVEL):
            once = (
                f"once in {round(1 / chance):,} times"
                if chance > 1e-9
                else "less than once in a billion times"
            )
            return Judgement(Verdict.ROLL_BACK, f"{compared}. Chance explains that {once}.")
    if not ends:
        lacking = "" if enough else f", {terms.requests - target.requests} requests are lacking"
        left = f"{max(terms.for_s - elapsed_s, 0.0):.0f} s are left" if terms.for_s else "no time is set"
        return Judgement(Verdict.GO_ON, f"{compared}; {left}{lacking}.")
    if terms.slower_max and active.mean_s and target.mean_s > terms.slower_max * active.mean_s:
        times = target.mean_s / active.mean_s
        return Judgement(
            Verdict.ROLL_BACK,
            f"A request takes {target.mean_s * 1000:.3g} ms, {times:.2f} times as long as of the active model "
            f"({active.mean_s * 1000:.3g} ms); {terms.slower_max:g} times are allowed.",
        )
    few = "" if enough else f" They are few, {terms.requests} were wanted, but it had {elapsed_s:.0f} s."
    return Judgement(Verdict.PROMOTE, f"{compared}: no worse than chance explains.{few}")


def chance_of(errors: int, requests: int, errors_there: int, requests_there: int) -> float:
    """How likely so many errors or more fall among `requests`, if all errors were spread at random over these and
    `requests_there`: the upper tail of the hypergeometric distribution, never 0. 1.0 where they are no more than expected."""
    all_errors, all_requests = errors + errors_there, requests + requests_there
    if not requests or errors * all_requests <= all_errors * requests:
        return 1.0
    most = min(all_errors, requests)
    term = exp(
        _log_choose(all_errors, errors)
        + _log_choose(all_requests - all_errors, requests - errors)
        - _log_choose(all_requests, requests)
    )
    total, k = term, errors
    while k < most and term > total * 1e-15:
        # P(k + 1) / P(k); beyond what is expected it is below 1 and falls.
        term *= (all_errors - k) * (requests - k)
        term /= (k + 1) * (all_requests - all_errors - requests + k + 1)
        total, k = total + term, k + 1
    return min(max(total, 1e-300), 1.0)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _rate(seen: Seen) -> str:
    return f"{seen.errors:,} of {seen.requests:,} requests failed ({100 * seen.error_rate:.3g} %)"
