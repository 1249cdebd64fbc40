"""Noticing that the working set does not fit: loads evict what loads need."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, NamedTuple

WINDOW_S: Final = 60.0
LOADS_MIN: Final = 16
"""Fewer loads in the window say nothing."""
RETURNS_SHARE: Final = 0.5
FOLLOWED_MAX: Final = 20_000


class Thrashing(NamedTuple):
    """What was seen within the window. `lacking_bytes` more memory would have spared the returns."""

    loads: int
    returns: int
    lacking_bytes: int


class Thrash:
    """Follows evictions and the loads that undo them."""

    def __init__(self) -> None:
        self._evicted: OrderedDict[str, float] = OrderedDict()
        self._loads: deque[tuple[float, str, int]] = deque()
        """(time, model, bytes; 0 bytes when it is no return)"""
        self._returns = 0
        self._returned_bytes: dict[str, tuple[int, int]] = {}
        """model -> (returns within the window, bytes)"""

    def evicted(self, model: str, now_s: float) -> None:
        self._evicted[model] = now_s
        self._evicted.move_to_end(model)
        if len(self._evicted) > FOLLOWED_MAX:
            self._evicted.popitem(last=False)

    def loaded(self, model: str, size_bytes: int, now_s: float) -> None:
        """A load that requests waited for."""
        at_s = self._evicted.pop(model, None)
        returned = at_s is not None and now_s - at_s <= WINDOW_S
        self._loads.append((now_s, model, size_bytes if returned else 0))
        if returned:
            self._returns += 1
            count, _ = self._returned_bytes.get(model, (0, 0))
            self._returned_bytes[model] = (count + 1, size_bytes)
        if len(self._loads) > FOLLOWED_MAX:
            self._forget()

    def judge(self, now_s: float) -> Thrashing | None:
        """None while the working set seems to fit."""
        while self._loads and now_s - self._loads[0][0] > WINDOW_S:
            self._forget()
        loads = len(self._loads)
        if loads < LOADS_MIN or self._returns < RETURNS_SHARE * loads:
            return None
        return Thrashing(loads, self._returns, sum(size for _, size in self._returned_bytes.values()))

    def _forget(self) -> None:
        _, model, size_bytes = self._loads.popleft()
        if size_bytes:
            self._returns -= 1
            count, latest_bytes = self._returned_bytes[model]
            if count > 1:
                self._returned_bytes[model] = (count - 1, latest_bytes)
            else:
                del self._returned_bytes[model]
