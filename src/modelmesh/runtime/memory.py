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


class Charges:
    """The charges of one worker by model, with their totals kept, since they are asked for at every load."""

    def __init__(self) -> None:
        self._by_model: dict[str, Charge] = {}
        self.size_bytes = 0
        self.file_bytes = 0

    def __getitem__(self, model: str) -> Charge:
        return self._by_model[model]

    def get(self, model: str) -> Charge | None:
        return self._by_model.get(model)

    def __setitem__(self, model: str, charge: Charge) -> None:
        self.drop(model)
        self._by_model[model] = charge
        self.size_bytes += charge.size_bytes
        self.file_bytes += charge.file_bytes

    def drop(self, model: str) -> None:
        """Charge nothing for a model any more; nothing happens when nothing was."""
        charge = self._by_model.pop(model, None)
        if charge is not None:
            self.size_bytes -= charge.size_bytes
            self.file_bytes -= charge.file_bytes


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
    charges: Charges = field(default_factory=Charges)
    reserved_bytes: int = 0
    """For the load or import that runs; 0 when none does."""
    unattributed_bytes: int = 0
    """May be negative: a base or a charge that is not fully used."""

    @property
    def charged_bytes(self) -> int:
        return self.charges.size_bytes

    @property
    def base_bytes(self) -> int:
        return self.base_anon_bytes + max(0, self.mapped_bytes - self.charges.file_bytes)

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
