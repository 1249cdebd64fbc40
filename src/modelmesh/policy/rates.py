"""How often a model is expected to be used, from the gaps between its uses. Times are any monotonic seconds."""

from __future__ import annotations

from typing import Final

WEIGHT: Final = 0.15
"""Of a new gap in the exponential mean, once three gaps are known; before that the mean is plain."""
GAP_MIN_S: Final = 1e-6


class Uses:
    """The uses of one model. Survives its eviction: a returning model is known. 0 uses: never used."""

    __slots__ = ("count", "gap_s", "last_s")

    def __init__(self) -> None:
        self.count = 0
        self.gap_s = 0.0
        self.last_s = 0.0

    def record(self, last_s: float, n: int = 1) -> None:
        """`n` uses happened since the previous record, the last one at `last_s`. Earlier times count as now.

        The gaps between them are taken as equal, which they are on average. Of a first record only the last
        use counts: when the others were is unknown.
        """
        if n <= 0:
            return
        if self.count == 0:
            self.count, self.last_s = 1, last_s
            return
        gap_s = max(last_s - self.last_s, 0.0) / n
        self.last_s = max(last_s, self.last_s)
        known = self.count - 1
        self.count += n
        while known < 3 and n:
            self.gap_s += (gap_s - self.gap_s) / (known + 1)
            known += 1
            n -= 1
        if n:
            self.gap_s = gap_s + (self.gap_s - gap_s) * (1.0 - WEIGHT) ** n

    def rate_per_s(self, now_s: float) -> float:
        """Expected uses per second: 1 / max(average gap, time since the last use); 0 when never used.

        Of a model used once no gap is known: it is taken to return after as long again as it has been idle.
        """
        if self.count == 0:
            return 0.0
        idle_s = now_s - self.last_s
        gap_s = self.gap_s if self.count > 1 else 2.0 * idle_s
        return 1.0 / max(gap_s, idle_s, GAP_MIN_S)
