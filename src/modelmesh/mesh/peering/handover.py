"""Leaving: what this instance alone holds is loaded elsewhere before it goes, the most missed first. Make before break.

Placed as by a keeper, loaded as urgently as for requests that wait. What is not done in time is dropped.
"""

from __future__ import annotations

import asyncio
from typing import Final

from modelmesh.clock import Clock
from modelmesh.errors import ModelMeshError
from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.copies import Copies, Copy
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.views import State
from modelmesh.policy.eviction import miss_cost_s

AT_ONCE: Final = 4
USED_WITHIN_S: Final = 3600.0
"""A copy that was not used for so long is not worth a load elsewhere (reference mesh.md 8.6)."""


async def hand_over(copies: Copies, others: Others, clock: Clock, journal: Journal, within_s: float) -> int:
    """Returns how many copies were loaded elsewhere. Never raises for one that could not be."""
    now_s = clock.monotonic_s()
    leaving = [copy for copy in copies if _missed(copy, others, now_s)]
    leaving.sort(key=lambda copy: _loss_s(copy, now_s), reverse=True)
    queue = iter(leaving)
    handed = 0

    async def work() -> None:
        nonlocal handed
        for copy in queue:
            if others.somewhere(copy.model):
                continue
            try:
                await others.load_elsewhere(copy.model, within_s, "its instance is leaving")
                handed += 1
            except ModelMeshError as error:
                journal.record(Did.WARNED, copy.model, f"It is not handed over: {error}")

    workers = [asyncio.create_task(work(), name="handover") for _ in range(AT_ONCE)]
    _, late = await asyncio.wait(workers, timeout=within_s)
    for worker in late:
        worker.cancel()
    for ended in await asyncio.gather(*workers, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
    if leaving:
        journal.record(
            Did.MOVED,
            "",
            f"{handed} of {len(leaving)} models in use were loaded elsewhere before this instance leaves.",
            models=len(leaving),
            handed=handed,
            took_s=clock.monotonic_s() - now_s,
        )
    return handed


def _missed(copy: Copy, others: Others, now_s: float) -> bool:
    """Whether requests would find no copy once this one is gone."""
    if copy.state is not State.LOADED or copy.retirement is not None or others.somewhere(copy.model):
        return False
    used_s = copy.history.last_s if copy.history.count else copy.since_s
    return now_s - used_s <= USED_WITHIN_S


def _loss_s(copy: Copy, now_s: float) -> float:
    """Seconds waited per second without it."""
    rate_per_s = copy.history.rate_per_s(now_s)
    return rate_per_s * miss_cost_s(copy.load_s, rate_per_s)
