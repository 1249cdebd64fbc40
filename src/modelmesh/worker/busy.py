"""How long the models of this process ran, batch by batch."""

from __future__ import annotations

import threading
import time


class Busy:
    """One thread begins and ends batches, another takes the times; a batch that runs on is taken in parts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handle = 0
        self._since_s: float | None = None
        """When the running batch began, or was last taken from; None when none runs."""
        self._total_s = 0.0
        self._by_handle: dict[int, float] = {}

    def begin(self, handle: int) -> None:
        """A batch of this model runs from now on."""
        with self._lock:
            self._handle, self._since_s = handle, time.perf_counter()

    def end(self) -> None:
        """It is done."""
        with self._lock:
            self._account()
            self._since_s = None

    def take(self) -> tuple[float, dict[int, float]]:
        """The seconds since the start in all, and since the last taking by handle, of those that ran."""
        with self._lock:
            self._account()
            taken, self._by_handle = self._by_handle, {}
            return self._total_s, taken

    def _account(self) -> None:
        if self._since_s is None:
            return
        now_s = time.perf_counter()
        ran_s = now_s - self._since_s
        self._since_s = now_s
        self._total_s += ran_s
        self._by_handle[self._handle] = self._by_handle.get(self._handle, 0.0) + ran_s
