"""The choice of a worker."""

from __future__ import annotations

import pytest

from modelmesh.runtime.placement import Candidate, choose

MIB = 1 << 20
SHARE = 256 * MIB


def _worker(
    charged_mib: float = 0, base_mib: float = 0, busy: float = 0.0, loading: bool = False, n_models: int = 0
) -> Candidate:
    return Candidate(int(charged_mib * MIB), int(base_mib * MIB), busy, loading, n_models)


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([], None),
        ([_worker()], 0),
        ([_worker(), _worker()], 0),
        ([_worker(10), _worker(5)], 1),
        ([_worker(50), _worker(0, base_mib=100)], 0),
        ([_worker(150), _worker(0, base_mib=100)], 1),
        ([_worker(10, n_models=3), _worker(10, n_models=1)], 1),
        ([_worker(loading=True), _worker(20)], 1),
        ([_worker(loading=True), _worker(20, loading=True)], 0),
        ([_worker(0, busy=1.0), _worker(20)], 1),
        ([_worker(0, busy=1.0), _worker(0, base_mib=100)], 0),
        ([_worker(0, base_mib=0.001), _worker(0, base_mib=100)], 0),
    ],
    ids=[
        "none",
        "one",
        "equal",
        "fewest bytes",
        "a new base costs memory",
        "but not for ever",
        "fewest models among equals",
        "not behind another load",
        "behind the better one",
        "not the busy one",
        "busy is cheaper than a base",
        "the smaller base",
    ],
)
def test_choose(workers: list[Candidate], expected: int | None) -> None:
    assert choose(workers, SHARE, 2000 * MIB) == expected


def test_an_import_that_takes_much_of_the_room_is_made_once() -> None:
    workers = [_worker(500, busy=1.0, loading=True), _worker(0, base_mib=100)]
    assert choose(workers, SHARE, 2000 * MIB) == 1
    assert choose(workers, SHARE, 900 * MIB) == 0
    assert choose([_worker(0, base_mib=100), _worker(0, base_mib=90)], SHARE, 200 * MIB) == 1, (
        "somewhere it has to be"
    )


def test_many_models_spread_evenly_over_workers_with_the_format() -> None:
    charged = [0, 0, 0]
    for number in range(300):
        size = (number * 7919) % 50 + 1
        place = choose([Candidate(held, 0, 0.0, False, 0) for held in charged], SHARE, 2000 * MIB)
        assert place is not None
        charged[place] += size
    assert max(charged) - min(charged) <= 50
