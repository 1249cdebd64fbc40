"""Memory for loads: what is evicted for those that wait for it, and which of them would wait in vain."""

from __future__ import annotations

from collections.abc import Callable

from modelmesh.clock import Clock
from modelmesh.errors import ModelMeshError, ModelTooLarge, NoCapacity
from modelmesh.mesh.cache.budget import Budget
from modelmesh.mesh.cache.copies import Copy
from modelmesh.mesh.cache.evictions import Evictions
from modelmesh.policy.eviction import miss_cost_s
from modelmesh.policy.urgency import Why
from modelmesh.settings.sizes import format_size


class Room:
    """Of one runtime. `refuse` is called for a queued copy that cannot be loaded; one that could if others were not held is
    given `patience_s`."""

    def __init__(
        self,
        budget: Budget,
        evictions: Evictions,
        clock: Clock,
        patience_s: float,
        refuse: Callable[[Copy, ModelMeshError], None],
    ) -> None:
        self._budget = budget
        self._evictions = evictions
        self._clock = clock
        self._patience_s = patience_s
        self._refuse = refuse

    def pay_overdraft(self) -> None:
        """Evict until what is charged fits again."""
        lacking_bytes = -self._budget.ledger.free_bytes - self._evictions.incoming_bytes
        if lacking_bytes > 0:
            reason = "because the memory in use came out larger than planned"
            self._evictions.make_room(lacking_bytes, reason, at_once=True, urgent=True)

    def set_aside(self, copy: Copy) -> bool:
        """Whether it cannot be loaded as things are, whoever is evicted; then it holds up nobody else. It is refused at
        once when it never fits, else when things stay like that for a while."""
        ledger = self._budget.ledger
        if copy.needed_bytes > ledger.capacity_bytes:
            self._refuse(copy, _too_large(copy, ledger.capacity_bytes))
            return True
        held_bytes = self._evictions.held_bytes(copy.why is Why.URGENT)
        if copy.needed_bytes <= ledger.capacity_bytes - ledger.unattributed_bytes - held_bytes:
            copy.set_aside_s = 0.0
            return False
        now_s = self._clock.monotonic_s()
        copy.set_aside_s = copy.set_aside_s or now_s
        if now_s >= copy.set_aside_s + self._patience_s:
            self._refuse(copy, _no_room(copy, self._budget, held_bytes))
        return True

    def make(self, head: Copy, lacking_bytes: int) -> None:
        """Evict for the blocked loads, or for their head alone when that is all that can be had. What could not suffice is not
        begun: nobody is evicted in vain."""
        ledger, urgent = self._budget.ledger, head.why is Why.URGENT
        evictable_bytes = self._evictions.evictable_bytes(urgent)
        if lacking_bytes > evictable_bytes:
            lacking_bytes = head.needed_bytes - ledger.free_bytes - self._evictions.incoming_bytes
        if lacking_bytes <= evictable_bytes:
            reason = f"to make room for {head.model}"
            self._evictions.make_room(lacking_bytes, reason, at_once=False, urgent=urgent)

    def make_by_worth(self, head: Copy) -> bool:
        """Evict what is worth less than a copy that is only expected to be used; nothing for a guess. False when that is not
        enough."""
        ledger, why = self._budget.ledger, head.why
        lacking_bytes = head.needed_bytes - ledger.free_bytes - self._evictions.incoming_bytes
        if why < Why.SCALE or lacking_bytes <= 0:
            return True
        if why is Why.SCALE and lacking_bytes <= self._evictions.evictable_bytes(urgent=False):
            rate_per_s = head.history.rate_per_s(self._clock.monotonic_s())
            worth = rate_per_s * miss_cost_s(head.load_s, rate_per_s)
            reason = f"to make room for {head.model}, which is expected to be used more"
            return self._evictions.make_room(lacking_bytes, reason, at_once=False, urgent=False, worth=worth)
        return False


def _too_large(copy: Copy, usable_bytes: int) -> ModelTooLarge:
    return ModelTooLarge(
        f"Model {copy.model} needs {format_size(copy.needed_bytes)} to load, but all models together may use "
        f"{format_size(usable_bytes)}: raise the memory by at least "
        f"{format_size(copy.needed_bytes - usable_bytes)}.",
        model=copy.model,
    )


def _no_room(copy: Copy, budget: Budget, held_bytes: int) -> NoCapacity:
    ledger = budget.ledger
    usable, held, stray = map(format_size, (ledger.capacity_bytes, held_bytes, ledger.unattributed_bytes))
    advice = " Unpin some, keep fewer copies, or raise the memory." if budget.held_bytes else ""
    return NoCapacity(
        f"Model {copy.model} needs {format_size(copy.needed_bytes)} to load. Of the {usable} models may use, {held} are "
        f"held by models that may not be evicted, and {stray} are in use by none of them.{advice}",
        model=copy.model,
        retry_after_s=1.0,
    )
