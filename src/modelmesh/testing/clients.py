"""What clients of a simulated mesh called, what was acknowledged to them, and what came out wrong.

Whatever a call says is believed: a model whose registration was acknowledged must be there from then on. One whose call failed
on the store may or may not be, which nobody may complain about.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from modelmesh.errors import InvariantBroken, ModelMeshError, StoreUnavailable
from modelmesh.mesh.tuning import Tuning

UNKNOWN_S: Final = Tuning().unknown_cache_s
"""So long after a registration an instance may remember that there was no such model."""


class Clients:
    """`rng` decides whom they ask for."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.registered: dict[str, str] = {}
        """What was acknowledged: model -> path."""
        self.doubtful: set[str] = set()
        """Ids with a call under way, or with one that failed on the store."""
        self._lives: Counter[str] = Counter()
        self._since_s: dict[str, float] = {}
        self.calls: set[asyncio.Task[None]] = set()
        """Those that have not ended."""
        self._problems: list[str] = []

    # --- what is registered ---------------------------------------------------------------------------------

    def known_model(self) -> str | None:
        """Any model that is surely registered; None when there is none."""
        known = self.sure()
        return self._rng.choice(known) if known else None

    def sure(self) -> list[str]:
        """All that are surely registered, ordered."""
        return sorted(model for model in self.registered if model not in self.doubtful)

    def life(self, model: str) -> int:
        """The number of the registration of a model that is surely registered, everywhere; 0 of any other."""
        if model not in self.registered or model in self.doubtful:
            return 0
        age_s = asyncio.get_running_loop().time() - self._since_s[model]
        return self._lives[model] if age_s > UNKNOWN_S else 0

    def is_free(self, model: str) -> bool:
        """Whether the id is surely not registered, nor about to be."""
        return model not in self.registered and model not in self.doubtful

    async def acknowledge(self, model: str, call: Coroutine[Any, Any, object], path: str | None) -> None:
        """Make the call that registers a model at `path`, or unregisters it (None), and note what comes of it."""
        self.doubtful.add(model)
        try:
            await call
        except StoreUnavailable:
            return
        except ModelMeshError:
            self.doubtful.discard(model)
            return
        self.doubtful.discard(model)
        if path is None:
            self.registered.pop(model, None)
        else:
            self.registered[model] = path
            self._lives[model] += 1
            self._since_s[model] = asyncio.get_running_loop().time()

    # --- calls ----------------------------------------------------------------------------------------------

    async def quiet(self, call: Coroutine[Any, Any, object]) -> None:
        """Make a call. Any error of the tree is a proper answer."""
        with suppress(ModelMeshError):
            await call

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it run. What it raises is a problem."""
        task = asyncio.get_running_loop().create_task(work)
        self.calls.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.calls.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._problems.append(f"a call raised {type(error).__name__}: {error}")

    # --- problems -------------------------------------------------------------------------------------------

    def expect(self, holds: bool, problem: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self._problems.append(problem)

    def note(self, problems: list[str]) -> None:
        """Note what the fakes object to."""
        self._problems += problems

    def complain(self) -> None:
        """Raise InvariantBroken with the first of the problems, if there are any."""
        if self._problems:
            now_s = asyncio.get_running_loop().time()
            raise InvariantBroken(f"At {now_s:.4f} s: {'; '.join(self._problems[:3])}.")
