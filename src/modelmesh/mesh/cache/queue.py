"""Loads that wait for their turn, most urgent first; the order itself is `policy.urgency`."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from modelmesh.mesh.cache.copies import Copy
from modelmesh.mesh.views import State
from modelmesh.policy.urgency import Order, Why, order

_Item = tuple[Order, int, Copy]


class LoadQueue:
    """A heap of queued copies, and one of those that are gentle. A change of order pushes the copy again; what is stale is
    skipped when met."""

    def __init__(self, asked_patience_s: float) -> None:
        self._asked_patience_s = asked_patience_s
        self._heap: list[_Item] = []
        self._gentle: list[_Item] = []
        self._members: dict[str, Copy] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Copy]:
        """All members, in no particular order."""
        return iter(self._members.values())

    def push(self, copy: Copy, now_s: float) -> None:
        """Add it, or put it where its want belongs now. One asked for that waited too long counts as urgent."""
        want = copy.want
        assert want is not None
        why = want.why
        if why is Why.ASKED and now_s - want.since_s >= self._asked_patience_s:
            why = Why.URGENT
        self._sequence += 1
        copy.order_sequence = self._sequence
        self._members[copy.model] = copy
        place = order(why, want.waiting, copy.load_s, want.since_s, copy.priority)
        heap = self._gentle if want.gentle else self._heap
        heappush(heap, (place, self._sequence, copy))
        if len(heap) > 64 and len(heap) > 4 * len(self._members):
            heap[:] = sorted(item for item in heap if self._valid(item))

    def discard(self, copy: Copy) -> None:
        if self._members.get(copy.model) is copy:
            del self._members[copy.model]

    def first(self, n: int, n_gentle: int) -> list[Copy]:
        """Up to so many members of either kind, most urgent first; they stay."""
        return [item[2] for item in sorted([*self._top(self._heap, n), *self._top(self._gentle, n_gentle)])]

    def _top(self, heap: list[_Item], n: int) -> list[_Item]:
        taken: list[_Item] = []
        while heap and len(taken) < n:
            item = heappop(heap)
            if self._valid(item):
                taken.append(item)
        for item in taken:
            heappush(heap, item)
        return taken

    def ordered(self) -> list[Copy]:
        """All members, most urgent first."""
        return [item[2] for item in sorted(filter(self._valid, [*self._heap, *self._gentle]))]

    def age(self, now_s: float) -> None:
        """Raise those that were asked for and have waited too long."""
        for copy in list(self._members.values()):
            want = copy.want
            if want is not None and want.why is Why.ASKED and now_s - want.since_s >= self._asked_patience_s:
                self.push(copy, now_s)

    def _valid(self, item: _Item) -> bool:
        _, sequence, copy = item
        return (
            copy.order_sequence == sequence
            and copy.state is State.QUEUED
            and self._members.get(copy.model) is copy
        )
