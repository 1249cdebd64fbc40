"""Thousands of stories of one instance: fault, load, evict, fail, cancel, crash, switch, register, each with its seed.

`MODELMESH_SEEDS=20000` plays more, `MODELMESH_SEED=1023` plays one.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from modelmesh.testing.simulator import Outcome, simulate

CHUNKS = 20
SEEDS = int(os.environ.get("MODELMESH_SEEDS", "2000"))
ONE = os.environ.get("MODELMESH_SEED", "")


@pytest.mark.skipif(bool(ONE), reason="one seed was asked for")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_invariant_holds_in_every_story(chunk: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(chunk, SEEDS, CHUNKS):
        outcome = simulate(seed)
        seen.update(outcome.answers)
        seen.update(loads=outcome.loads, evictions=outcome.evictions, crashes=outcome.crashes)
    if SEEDS >= 10 * CHUNKS:
        # A simulator in which nothing happens proves nothing.
        missing = [
            what
            for what in ("OK", "NOT_FOUND", "RESOURCE_EXHAUSTED", "evictions", "crashes")
            if not seen[what]
        ]
        assert not missing, f"never seen: {missing}"


@pytest.mark.skipif(not ONE, reason="no single seed was asked for")
def test_one_seed() -> None:
    simulate(int(ONE))


def test_the_same_seed_is_the_same_story() -> None:
    def play() -> Outcome:
        return simulate(7)

    assert play() == play()
