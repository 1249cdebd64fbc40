"""How long models ran."""

from __future__ import annotations

import pytest

from modelmesh.worker import busy
from modelmesh.worker.busy import Busy


def test_a_batch_that_runs_on_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(busy.time, "perf_counter", lambda: now_s)
    times = Busy()
    assert times.take() == (0.0, {})
    times.begin(1)
    now_s = 101.0
    times.end()
    now_s = 105.0
    times.begin(2)
    now_s = 107.0
    assert times.take() == (3.0, {1: 1.0, 2: 2.0})
    now_s = 110.0
    assert times.take() == (6.0, {2: 3.0})
    times.end()
    times.begin(2)
    now_s = 110.5
    times.end()
    now_s = 200.0
    assert times.take() == (6.5, {2: 0.5})
