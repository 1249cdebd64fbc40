"""Requests as the simulator's data plane sees them: who asks for what until when, and what came of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from modelmesh.dataplane.protocol import Name
from modelmesh.errors import Code


class Answer(NamedTuple):
    """What a client got. `model` is the concrete model that served it, or was asked to."""

    code: Code
    message: str = ""
    model: str = ""
    retry_after_ms: int = -1


@dataclass(eq=False, slots=True)
class Request:
    """One call of a client. `answer` is set exactly once."""

    name: Name
    deadline_s: float
    execution_s: float
    answer: asyncio.Future[Answer]
    begun_s: float
    model: str = ""
    replica_id: int = 0
    crashes: int = 0
    left: list[int] = field(default_factory=list)
    """Silent instances it did not wait for, as targets."""
    forwarded: bool = False
    """It came from another instance: it is served here or not at all."""
    canary: bool | None = None
    """Whether it is for the canary of a name that stands for two models; None: it has not looked."""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def cancel(self) -> None:
        """The client goes away."""
        self.answer.cancel()
