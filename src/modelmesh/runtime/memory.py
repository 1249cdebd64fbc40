"""Whose bytes the workers' bytes are: their own base, a model's, or nobody's.

A worker's base is its private memory before and between imports, plus all that is mapped from files now, for libraries
are. Mapped memory is read anew each time, because what processes share is split among them and moves as they come
and go. Unattributed is what is left of the whole; it is summed before it is clamped, so that
capacity − charges − unattributed is exactly the budget less what all workers weigh.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from modelmesh.worker.memory import Footprint

ABSORBED_BYTES_MAX: Final = 24 << 20


@dataclass(frozen=True, slots=True)
class Charge:
    """A model's bytes in one worker; `file_bytes` of them are mapped from files."""

    size_bytes: int
    file_bytes: int


@dataclass(slots=True)
class Account:
    """One worker's memory."""

    base_anon_bytes: int = 0
    footprint: Footprint = field(default_factory=lambda: Footprint(0, 0))
    """As last read."""
    mapped_bytes: int = 0
    """Mapped from files, as last read while nothing was loaded: an import maps what is reserved already."""
    absorbed_bytes: int = 0
    """What its base took up while it was empty."""
    charges: dict[str, Charge] = field(default_factory=dict)
    reserved_bytes: int = 0
    """For the load or import that runs; 0 when none does."""
    unattributed_bytes: int = 0
    """May be negative: a base or a charge that is not fully used."""

    @property
    def charged_bytes(self) -> int:
        return sum(charge.size_bytes for charge in self.charges.values())

    @property
    def base_bytes(self) -> int:
        models_bytes = sum(charge.file_bytes for charge in self.charges.values())
        return self.base_anon_bytes + max(0, self.mapped_bytes - models_bytes)

    def found_idle(self, footprint: Footprint) -> None:
        """The worker has just started: all it weighs is its base."""
        self.footprint, self.base_anon_bytes, self.mapped_bytes = footprint, *footprint

    def base_grew(self, before: Footprint, after: Footprint) -> int:
        """Something was imported between two readings. Returns the growth of the worker as a whole."""
        self.footprint, self.mapped_bytes = after, after.file_bytes
        self.base_anon_bytes += max(0, after.anon_bytes - before.anon_bytes)
        return max(0, after.pss_bytes - before.pss_bytes)

    def found_empty(self, anon_bytes: int) -> None:
        """It holds no model, nothing runs, free pages were given back: what it weighs is its base, as far as that is what
        libraries set up on first use (`ABSORBED_BYTES_MAX` in all) and no leak."""
        absorbed_bytes = self.absorbed_bytes + anon_bytes - self.base_anon_bytes
        if absorbed_bytes <= ABSORBED_BYTES_MAX:
            self.absorbed_bytes, self.base_anon_bytes = absorbed_bytes, anon_bytes

    def measured(self, footprint: Footprint) -> None:
        """A periodic reading. While a load runs it uses something between nothing and its reservation: what belonged to
        nobody before is believed as far as that allows."""
        self.footprint = footprint
        if not self.reserved_bytes:
            self.mapped_bytes = footprint.file_bytes
        most_bytes = footprint.pss_bytes - self.base_bytes - self.charged_bytes
        least_bytes = most_bytes - self.reserved_bytes
        self.unattributed_bytes = min(max(self.unattributed_bytes, least_bytes), most_bytes)


def capacity_bytes(budget_bytes: int, accounts: Iterable[Account]) -> int:
    """What models may use: the budget less the bases, never negative."""
    return max(0, budget_bytes - sum(account.base_bytes for account in accounts))


def unattributed_bytes(accounts: Iterable[Account]) -> int:
    """What the workers weigh beyond bases, charges and reservations, never negative."""
    return max(0, sum(account.unattributed_bytes for account in accounts))
