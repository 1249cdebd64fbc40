"""Stories of three to twenty instances, each with its seed: what goes wrong there stands in `testing.trouble`, what must hold in
`testing.watching` and `testing.convergence`.

`MODELMESH_MANY_SEEDS=5000` plays more, `MODELMESH_MANY_SEED=17` plays one.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from modelmesh.testing.many import play

CHUNKS = 10
SEEDS = int(os.environ.get("MODELMESH_MANY_SEEDS", "200"))
ONE = os.environ.get("MODELMESH_MANY_SEED", "")
FOUND = (0, 6, 17, 22, 31, 44, 55, 70, 146, 231, 258, 305, 670, 1205, 1517, 2289, 30213)
"""Seeds that once found something, whatever they play by now; what each found has a test of its own (tests/unit/mesh)."""
HAPPENS = (
    "OK", "NOT_FOUND", "UNAVAILABLE", "DEADLINE_EXCEEDED", "loads", "kept", "scaled up", "scaled down", "evictions", "crashes",
    "freezes", "late loops", "partitions", "splits", "isolations", "store cuts", "outages", "storms", "stops", "upgrades", "sick",
    "storage lost", "asked of all at once",
)  # fmt: skip


@pytest.mark.skipif(bool(ONE), reason="one seed was asked for")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_invariant_holds_in_every_story(chunk: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(chunk, SEEDS, CHUNKS):
        seen += play(seed)
    if SEEDS >= 50 * CHUNKS:
        # Stories in which nothing happens prove nothing.
        assert not [what for what in HAPPENS if not seen[what]]


@pytest.mark.skipif(bool(ONE), reason="one seed was asked for")
@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_found_something(seed: int) -> None:
    play(seed)


@pytest.mark.skipif(not ONE, reason="no single seed was asked for")
def test_one_seed() -> None:
    play(int(ONE))


def test_the_same_seed_is_the_same_story() -> None:
    assert play(7) == play(7)
