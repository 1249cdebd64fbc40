"""Which instance looks after a model: rendezvous hashing, weighted by capacity.

Everybody who sees the same instances names the same keeper, without asking anyone, and when an instance comes or
goes only the models it gains or had are re-kept (Thaler and Ravishankar 1998; the weights after Schindelhauer and
Schomaker 2005). Names and weights alone decide, so the order is the same in every process and version.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from math import log


def score(model: str, instance: str, weight: float) -> float:
    """The higher, the nearer the model is to the instance. An instance wins in proportion to its weight; one of weight 0
    (draining, without memory) never wins while there is another."""
    digest = blake2b(f"{instance}\0{model}".encode(), digest_size=8).digest()
    share = (int.from_bytes(digest, "big") + 0.5) / 2.0**64
    return -weight / log(share) if share < 1.0 else 0.0


def ranked(model: str, weights: Mapping[str, float]) -> list[str]:
    """All instances of `weights`, the keeper first; empty when there is none."""
    return sorted(weights, key=lambda instance: (-score(model, instance, weights[instance]), instance))


def keeper(model: str, weights: Mapping[str, float]) -> str | None:
    """The first of `ranked`; None when there is no instance."""
    return min(
        weights, key=lambda instance: (-score(model, instance, weights[instance]), instance), default=None
    )
