"""The soak of `bench/soak.py` at a size for every day: real models in a fraction of their memory, every answer checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import models, soak
from bench.product import serving

MIB = 2**20
SEED = 5
ROOM_BYTES = 24 * MIB
"""For models, beside what one worker weighs with all formats imported: about a fourth of the zoo."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_zoo_is_served_from_a_fraction_of_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print("seed", SEED)
    monkeypatch.setattr(models, "OUT", tmp_path)
    zoo = models.zoo(120, seed=SEED, size_bytes_max=8 * MIB, tree_bytes_max=400 * 1024)
    with serving(zoo.models, memory="2GiB", workers=1) as product:
        soak.warm(product, zoo.index)
        base_bytes = soak.settled_pss_bytes(product)
    result = soak.soak(
        zoo,
        budget_bytes=base_bytes + ROOM_BYTES,
        workers=1,
        seconds=8,
        n_clients=16,
        samples_min=8,
        evictions_min=50,
        overcommit_min=0.2,
        seed=SEED,
    )
    failed = [
        f"{check.what}: {check.found}, wanted {check.wanted}" for check in result.checks if not check.holds
    ]
    assert result.holds, "\n".join([*failed, *result.told])
