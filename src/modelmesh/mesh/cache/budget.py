"""What the models of one runtime share: its account of bytes, who may be evicted, and what is learned of both."""

from __future__ import annotations

import random

from modelmesh.mesh.cache.ledger import Ledger
from modelmesh.policy.eviction import Residents
from modelmesh.policy.shadow import Shadow
from modelmesh.policy.thrash import Thrash


class Budget:
    """Bytes are never lent between runtimes. `runtime` is its name."""

    def __init__(self, runtime: str, rng: random.Random) -> None:
        self.runtime = runtime
        self.ledger = Ledger()
        self.residents = Residents(rng)
        self.shadow = Shadow(rng)
        self.thrash = Thrash()
        self.n_targets = 0
        """Its model servers."""
        self.held_bytes = 0
        """What loaded copies weigh that may not be evicted for anybody."""
        self.yielding: dict[str, int] = {}
        """Loaded copies that may be evicted only for requests that wait, longest held first, with what they weigh."""
        self.yielding_bytes = 0
