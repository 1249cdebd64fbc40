"""Hundreds of stories of three to six instances: faults, loads, evictions, crashes, partitions, silence, each with its seed.

`MODELMESH_MANY_SEEDS=5000` plays more, `MODELMESH_MANY_SEED=17` plays one.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from modelmesh.testing.many import play

CHUNKS = 10
SEEDS = int(os.environ.get("MODELMESH_MANY_SEEDS", "150"))
ONE = os.environ.get("MODELMESH_MANY_SEED", "")


@pytest.mark.skipif(bool(ONE), reason="one seed was asked for")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_invariant_holds_in_every_story(chunk: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(chunk, SEEDS, CHUNKS):
        seen += play(seed)
    if SEEDS >= 15 * CHUNKS:
        # A story in which nothing happens proves nothing.
        expected = (
            "OK",
            "UNAVAILABLE",
            "loads",
            "kept",
            "scaled up",
            "scaled down",
            "evictions",
            "crashes",
            "freezes",
            "partitions",
            "stops",
        )
        assert not [what for what in expected if not seen[what]]


@pytest.mark.skipif(not ONE, reason="no single seed was asked for")
def test_one_seed() -> None:
    play(int(ONE))


def test_the_same_seed_is_the_same_story() -> None:
    assert play(7) == play(7)
