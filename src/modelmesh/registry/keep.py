"""How a model is kept: in how many copies, whether it may be evicted, and how much its waiting counts. Changed at any time,
unlike what the model is."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Final

from modelmesh.errors import InvalidInput

COPIES_MAX: Final = 1_000
"""More copies than any mesh has instances can only be a mistake."""
PRIORITY_MIN: Final = 0.01
PRIORITY_MAX: Final = 100.0


@dataclass(frozen=True, slots=True)
class Keep:
    """Of one model. The default: loaded when asked for, evicted by value."""

    min_copies: int = 0
    """So many are kept loaded, in different zones, then hosts, as far as there are instances."""
    max_copies: int = 0
    """More are not made; 0: no bound."""
    pin: bool = False
    """Once loaded, it is not evicted."""
    priority: float = 1.0
    """A second that a request for it waits counts as much as this many seconds of others'."""

    def at_most(self, copies: int) -> int:
        """`copies`, or the most there may be."""
        return min(copies, self.max_copies) if self.max_copies else copies


NO_KEEP: Final = Keep()


@dataclass(frozen=True, slots=True)
class KeepChange:
    """What is to be different; None: as it is."""

    min_copies: int | None = None
    max_copies: int | None = None
    pin: bool | None = None
    priority: float | None = None

    def __bool__(self) -> bool:
        return self != AS_IT_IS

    def _given(self) -> dict[str, int | float | bool]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def applied(self, keep: Keep, model: str = "") -> Keep:
        """`keep` with the change. Raises InvalidInput when a number is out of bounds, or the least is above the most."""
        if not self:
            return keep
        for name, copies in (("min_copies", self.min_copies), ("max_copies", self.max_copies)):
            if copies is not None and not 0 <= copies <= COPIES_MAX:
                raise InvalidInput(f"{name}: {copies} is not a number from 0 to {COPIES_MAX}.", model=model)
        if self.priority is not None and not PRIORITY_MIN <= self.priority <= PRIORITY_MAX:
            raise InvalidInput(
                f"priority: {self.priority:g} is not a number from {PRIORITY_MIN:g} to {PRIORITY_MAX:g}; "
                "1 is as for all others.",
                model=model,
            )
        changed = replace(keep, **self._given())  # type: ignore[arg-type]
        if changed.max_copies and changed.min_copies > changed.max_copies:
            raise InvalidInput(
                f"At least {changed.min_copies} copies are more than at most {changed.max_copies}: "
                "lower min_copies, or raise max_copies (0: no bound).",
                model=model,
            )
        return changed


AS_IT_IS: Final = KeepChange()


def taken_over(former: Keep, own: Keep) -> Keep:
    """How a model is kept to which a name moves: on its own terms, and without any on those of the model that had the name."""
    return former if own == NO_KEEP else own


def stored(min_copies: int, max_copies: int, pin: bool, priority: float) -> Keep:
    """As it was stored, whoever wrote it: what is out of bounds counts as the nearest that is not."""
    if min_copies == max_copies == 0 and not pin and priority == 1.0:
        return NO_KEEP
    if not isfinite(priority):
        priority = 1.0
    return Keep(
        min(max(min_copies, 0), COPIES_MAX),
        min(max(max_copies, 0), COPIES_MAX),
        pin,
        min(max(priority, PRIORITY_MIN), PRIORITY_MAX),
    )
