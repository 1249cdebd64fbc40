"""Which of several runtimes serves a model type: by the types they serve, and by the labels a type requires of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

DEFAULT: Final = "_default"
"""The type whose constraint applies to all that have none (reference mesh.md 5.3)."""


class Offer(NamedTuple):
    """What a runtime serves, known before it runs. No types: any type."""

    name: str
    model_types: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Constraint:
    """Which labels a runtime must all have to serve a type, and of which one makes it preferred."""

    required: frozenset[str] = frozenset()
    preferred: frozenset[str] = frozenset()


def choose(
    model_type: str, offers: Sequence[Offer], constraints: Mapping[str, Constraint] | None = None
) -> int | str:
    """The index of the runtime that serves the type, or a sentence that says why none does.

    Those that name the type come before those that take any, the preferred before the others, then the configured order
    counts. Case does not. Where there is one runtime only, its labels alone can speak against it: asked about a
    type, it says itself what it serves."""
    constraints = constraints or {}
    constraint = constraints.get(model_type) or constraints.get(DEFAULT) or Constraint()
    wanted = model_type.lower()
    serving: list[tuple[bool, bool, int]] = []
    for index, offer in enumerate(offers):
        names_it = wanted in {served.lower() for served in offer.model_types}
        if names_it or not offer.model_types or len(offers) == 1:
            serving.append((not names_it, not constraint.preferred & offer.labels, index))
    allowed = [place for place in serving if constraint.required <= offers[place[2]].labels]
    if allowed:
        return min(allowed)[2]
    if serving:
        required = ", ".join(sorted(constraint.required))
        having = "; ".join(
            f"{offers[index].name} has {', '.join(sorted(offers[index].labels)) or 'none'}"
            for *_, index in serving
        )
        return f"No runtime here may serve type {model_type}: it requires the labels {required}; {having}."
    served = sorted({served for offer in offers for served in offer.model_types})
    return f"No runtime here serves type {model_type}; there are {', '.join(served)}."
