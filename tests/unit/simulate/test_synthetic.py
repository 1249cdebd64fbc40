from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from modelmesh.simulate.synthetic import Synthetic, parse_synthetic, synthesise
from modelmesh.simulate.trace import LoadCost, Trace, TraceError

SMALL = Synthetic(models=200, requests=20_000, rate=100.0)


def uses(trace: Trace) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.bincount(trace.model, minlength=trace.models)


def test_the_seed_decides() -> None:
    first, again, other = synthesise(SMALL, 1), synthesise(SMALL, 1), synthesise(SMALL, 2)
    for column in ("at_s", "model", "size_bytes", "load_s"):
        assert (getattr(first, column) == getattr(again, column)).all()
        assert not (getattr(first, column) == getattr(other, column)).all()


def test_times_start_at_0_and_never_fall_whatever_is_asked() -> None:
    for what in (
        SMALL,
        replace(SMALL, burst=4.0),
        replace(SMALL, burst=0.0),
        replace(SMALL, rate=0.2, day=0.9),
        replace(SMALL, sweeps=3, churn=0.3, flash=0.5),
    ):
        trace = synthesise(what, 1)
        assert trace.at_s[0] == 0.0 and (np.diff(trace.at_s) >= 0).all()
        assert len(trace) == what.requests + what.sweeps * what.models
        assert trace.span_s == pytest.approx(what.requests / what.rate, rel=0.15)


def test_popularity_is_zipf() -> None:
    counts = np.sort(uses(synthesise(replace(SMALL, zipf=1.0), 1)))[::-1]
    assert counts[0] / counts[9] == pytest.approx(10.0, rel=0.3)
    flat = uses(synthesise(replace(SMALL, zipf=0.0), 1))
    assert flat.min() > 50 and flat.max() < 150


def test_bursts_and_days_shape_the_arrivals() -> None:
    gaps = np.diff(synthesise(replace(SMALL, burst=3.0), 1).at_s)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.2)
    by_day = synthesise(replace(SMALL, rate=SMALL.requests / 86_400, day=0.8), 1).at_s
    morning, evening = (by_day < 43_200).sum(), (by_day >= 43_200).sum()
    # The integral of 1 + 0.8 sin over half a turn: 1 + 1.6 / pi against 1 - 1.6 / pi.
    assert morning / evening == pytest.approx((1 + 1.6 / np.pi) / (1 - 1.6 / np.pi), rel=0.1)


def test_sizes_and_load_times() -> None:
    equal = synthesise(replace(SMALL, spread=0.0, size=1000, load_spread=1.0), 1, LoadCost(0.5, 1000.0))
    assert (equal.size_bytes == 1000).all() and equal.load_s == pytest.approx(np.full(200, 1.5))
    spread = synthesise(replace(SMALL, models=5000), 1)
    assert np.median(spread.size_bytes) == pytest.approx(SMALL.size, rel=0.1)
    assert np.log(spread.size_bytes).std() == pytest.approx(1.2, rel=0.1)


def test_churn_sweeps_and_flash_crowds() -> None:
    def halves(what: Synthetic) -> float:
        trace = synthesise(what, 1)
        middle = len(trace) // 2
        first, second = (
            np.bincount(part, minlength=200) for part in (trace.model[:middle], trace.model[middle:])
        )
        return float(np.corrcoef(first, second)[0, 1])

    assert halves(SMALL) > 0.98 > 0.9 > halves(replace(SMALL, churn=0.5))
    swept = synthesise(replace(SMALL, sweeps=2, zipf=3.0), 1)
    assert (uses(swept) >= 2).all()
    crowd = synthesise(replace(SMALL, flash=0.9), 1)
    middle = crowd.model[9_500:10_500]
    most = np.bincount(middle).max()
    assert 850 < most < 960


def test_parameters_are_parsed_and_checked() -> None:
    assert parse_synthetic("") == Synthetic()
    assert parse_synthetic("models=7, zipf=1.5,size=2KiB,requests=1e3") == Synthetic(
        models=7, zipf=1.5, size=2048, requests=1000
    )
    names = ", ".join(field.name for field in fields(Synthetic))
    for text, sentence in (
        ("modells=7", f"'modells=7' is no parameter of a synthetic trace: NAME=VALUE, with {names}."),
        ("models", f"'models' is no parameter of a synthetic trace: NAME=VALUE, with {names}."),
        ("models=many", "models=many is not a number."),
        ("zipf=-1", "zipf=-1 is not a number from 0 up."),
        ("models=0", "models=0 is not between 1 and 1e+07."),
        ("flash=2", "flash=2.0 is not between 0 and 1."),
        ("size=big", "size=big is not a size: write bytes, or a number with KiB, MiB, GiB, KB, MB or GB."),
    ):
        with pytest.raises(TraceError) as refused:
            parse_synthetic(text)
        assert str(refused.value) == sentence
