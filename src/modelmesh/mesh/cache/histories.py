"""What is remembered of the use of a model; it outlives the model's eviction."""

from __future__ import annotations

from collections import OrderedDict

from modelmesh.policy.rates import Uses


class History(Uses):
    """Uses and totals since the start of the instance. `last_s` and gaps are of the monotonic clock."""

    __slots__ = ("loads_total", "requests_total")

    def __init__(self) -> None:
        super().__init__()
        self.requests_total = 0
        self.loads_total = 0

    def hear(self, rate_per_s: float, last_s: float) -> None:
        """Take over what another instance knows, unless a later use is known here."""
        if rate_per_s > 0.0 and (self.count == 0 or last_s > self.last_s):
            self.count, self.gap_s, self.last_s = max(self.count, 2), 1.0 / rate_per_s, last_s

    def inherit(self, other: Uses) -> None:
        """Take over the uses of another model, when this one was never used."""
        if self.count == 0:
            self.count, self.gap_s, self.last_s = other.count, other.gap_s, other.last_s


class Histories:
    """The histories of models without a copy, at most `capacity`, the longest absent forgotten first. A model with a
    copy has its history there (`take`) until the copy is gone (`put`), so that a history is never forgotten in use."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._absent: OrderedDict[str, History] = OrderedDict()

    def take(self, model: str) -> History:
        """The history for a new copy: the remembered one, or an empty one."""
        return self._absent.pop(model, None) or History()

    def put(self, model: str, history: History) -> None:
        """The copy is gone. A history of nothing is not kept."""
        if history.count == 0 and history.loads_total == 0:
            return
        self._absent[model] = history
        if len(self._absent) > self._capacity:
            self._absent.popitem(last=False)

    def peek(self, model: str) -> History | None:
        """The history of a model without a copy; None when nothing is remembered."""
        return self._absent.get(model)

    def forget(self, model: str) -> None:
        self._absent.pop(model, None)

    def __len__(self) -> int:
        return len(self._absent)
