"""Strikes, isolation, quarantine."""

from __future__ import annotations

import pytest

from modelmesh.errors import Quarantined
from modelmesh.runtime import quarantine
from modelmesh.runtime.quarantine import BACK_OFF_S, BACK_OFF_S_MAX, FORGET_S, Quarantine


def test_the_first_strike_isolates_and_does_not_keep_away() -> None:
    kept = Quarantine()
    assert not kept.runs_alone("m", 0.0)
    assert kept.strike("m", "SIGSEGV", 0.0, alone=False) is False
    assert kept.runs_alone("m", 0.0)
    assert not kept.runs_alone("other", 0.0)
    kept.check("m", 0.0)


def test_the_second_strike_alone_quarantines() -> None:
    kept = Quarantine()
    kept.strike("m", "SIGSEGV", 0.0, alone=False)
    assert kept.strike("m", "it was ended by SIGABRT", 10.0, alone=True) is True
    with pytest.raises(Quarantined, match=r"Model m is quarantined .* 2 times, .* SIGABRT") as refused:
        kept.check("m", 20.0)
    assert refused.value.retry_after_s == pytest.approx(BACK_OFF_S - 10.0)
    kept.check("other", 20.0)


def test_a_second_strike_in_company_proves_nothing() -> None:
    kept = Quarantine()
    kept.strike("m", "SIGSEGV", 0.0, alone=False)
    assert kept.strike("m", "SIGSEGV", 1.0, alone=False) is False
    kept.check("m", 1.0)
    assert kept.strike("m", "SIGSEGV", 2.0, alone=True) is True


def test_a_first_strike_alone_does_not_quarantine() -> None:
    assert Quarantine().strike("m", "SIGSEGV", 0.0, alone=True) is False


def test_after_quarantine_it_is_tried_alone_and_kept_away_longer_each_time() -> None:
    kept, now_s, waits_s = Quarantine(), 0.0, []
    kept.strike("m", "SIGSEGV", now_s, alone=False)
    for _ in range(10):
        kept.strike("m", "SIGSEGV", now_s, alone=True)
        with pytest.raises(Quarantined) as refused:
            kept.check("m", now_s)
        wait_s = refused.value.retry_after_s
        assert wait_s is not None
        waits_s.append(wait_s)
        now_s += wait_s
        kept.check("m", now_s)
        assert kept.runs_alone("m", now_s)
    assert waits_s[:3] == [BACK_OFF_S, 2 * BACK_OFF_S, 4 * BACK_OFF_S]
    assert waits_s[-1] == BACK_OFF_S_MAX


def test_a_model_that_behaves_is_forgiven() -> None:
    kept = Quarantine()
    kept.strike("m", "SIGSEGV", 0.0, alone=False)
    assert not kept.runs_alone("m", FORGET_S + 1)
    assert kept.strike("m", "SIGSEGV", FORGET_S + 2, alone=True) is False


def test_the_records_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "RECORDS_MAX", 3)
    kept = Quarantine()
    for number in range(5):
        kept.strike(f"m{number}", "SIGSEGV", 0.0, alone=False)
    assert [kept.runs_alone(f"m{number}", 0.0) for number in range(5)] == [False, False, True, True, True]
