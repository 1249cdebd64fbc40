"""Ids of targets and replicas. The data plane knows them by number only, so the runtimes of one instance share one source."""

from __future__ import annotations

from itertools import count


class Ids:
    """Numbers that were not given before, from 1."""

    def __init__(self) -> None:
        self._targets = count(1)
        self._replicas = count(1)

    def target(self) -> int:
        return next(self._targets)

    def replica(self) -> int:
        return next(self._replicas)
