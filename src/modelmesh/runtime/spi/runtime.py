"""A model server behind `mmesh.ModelRuntime` as a Runtime (reference mesh.md 1.3, 8.5).

not started -> living -> away (its connection ended: every copy is lost, it is polled) -> living, another life
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from modelmesh.dataplane.protocol import Replica, Target
from modelmesh.errors import Code, LoadFailed, LoadTimeout, RuntimeUnavailable
from modelmesh.journal import Did
from modelmesh.policy.runtimes import Offer
from modelmesh.runtime.events import Events
from modelmesh.runtime.ids import Ids
from modelmesh.runtime.protocol import (
    CapacityChanged,
    CopyLost,
    Estimate,
    Loaded,
    ModelSpec,
    Noted,
    RuntimeEvent,
    RuntimeInfo,
    SizeChanged,
    TargetsChanged,
    UnloadGivenUp,
)
from modelmesh.runtime.spi.calls import CallFailed
from modelmesh.runtime.spi.life import Life, Poll
from modelmesh.runtime.spi.status import Status

_log = logging.getLogger(__name__)

START_WINDOW_S: Final = 180.0
"""The predecessor's."""
PREDICT_TIMEOUT_S: Final = 0.5
SIZE_TIMEOUT_S: Final = 30.0
UNLOAD_TIMEOUT_S: Final = 25.0
UNLOAD_PATIENCE_S: Final = 900.0
"""An unload that has failed for so long is given up, as by the predecessor."""
AWAY_PAUSE_S_MAX: Final = 30.0
LOADS_LOST_MAX: Final = 2
"""A server that went away this often while it loaded a model is not given it again: the model may be the cause."""
WAIT_SHARE: Final = 0.9
"""Of the load timeout: how long a load waits for a server that is away; then it says so before its caller gives up."""


class _WentAway(Exception):
    """The life ended in which a load was running."""


@dataclass(frozen=True, slots=True)
class SpiConfig:
    """Where the server is and what it is for."""

    offer: Offer
    addresses: tuple[str, ...]
    """"unix:/path" or "host:port"; the first of them that answers is the one."""
    serving_address: str = ""
    """Where it serves requests; empty: where it is managed."""
    start_window_s: float = START_WINDOW_S
    unload_patience_s: float = UNLOAD_PATIENCE_S
    ids: Ids = field(default_factory=Ids)


class SpiRuntime:
    """Implements `runtime.protocol.Runtime`. Owned by the event loop it was started on."""

    def __init__(self, config: SpiConfig) -> None:
        self._config = config
        self._ids = config.ids
        self._events = Events()
        self._poll = Poll(config.addresses, config.serving_address, self._not_ready)
        self._life: Life | None = None
        self._living = asyncio.Event()
        self._target_id = 0
        self._loaded: set[str] = set()
        self._bytes: dict[str, int] = {}
        """What each model the server may hold is thought to weigh."""
        self._stray: dict[str, int] = {}
        """Models whose unload was given up, with their bytes."""
        self._failing_since_s: dict[str, float] = {}
        """Models whose unload fails."""
        self._status: Status | None = None
        """What the server said last; None: not started."""
        self._predicts = True
        self._following: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def offer(self) -> Offer:
        """See `Runtime.offer`."""
        return self._config.offer

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> RuntimeInfo:
        """Poll until the server is ready. See `Runtime.start`."""
        self._stopped = False
        life = await self._poll.ready(self._config.start_window_s)
        self._begin(life)
        self._following = asyncio.create_task(self._follow(life), name=f"runtime {life.calls.address}")
        return RuntimeInfo(
            capacity_bytes=life.status.capacity_bytes,
            max_loads=life.status.max_loads,
            model_types=self._config.offer.model_types,
            load_timeout_s=life.status.load_timeout_s,
            serves_versions=True,
        )

    def _begin(self, life: Life) -> None:
        """The server is there and empty."""
        self._life, self._status, self._predicts = life, life.status, True
        self._target_id = self._ids.target()
        target = Target(
            self._target_id,
            self._config.serving_address or life.calls.address,
            signals_loss=False,
            methods=life.status.methods,
            allow_any_method=life.status.allow_any_method,
        )
        self._events.put(TargetsChanged((target,), ()))
        self._events.put(CapacityChanged(life.status.capacity_bytes, 0, "the runtime is ready and empty"))
        self._living.set()

    async def _follow(self, life: Life) -> None:
        """Wait for the end of each life and for the next one."""
        while True:
            await life.ended.wait()
            self._end(life)
            await life.close()
            life = await self._next_life()
            self._begin(life)

    def _end(self, life: Life) -> None:
        """The connection is over: whatever comes next is another server, without a model."""
        self._living.clear()
        self._life = None
        reason = f"the runtime at {life.calls.address} went away"
        self._events.put(
            Noted(
                Did.WARNED,
                "",
                f"The connection to the runtime at {life.calls.address} ended, and with it {len(self._loaded)} copies; it is "
                "polled until it is ready again.",
            )
        )
        for model in sorted(self._loaded):
            self._events.put(CopyLost(model, reason))
        self._events.put(TargetsChanged((), (self._target_id,)))
        for books in (self._loaded, self._bytes, self._stray, self._failing_since_s):
            books.clear()

    async def _next_life(self) -> Life:
        pause_s = 1.0
        while True:
            try:
                return await self._poll.ready(self._config.start_window_s)
            except RuntimeUnavailable as error:
                self._warn(f"{error} It is asked again.")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AWAY_PAUSE_S_MAX)

    async def stop(self, grace_s: float) -> None:
        """The server is not ours to stop, and what it holds it may keep: the next start purges it. See `Runtime.stop`."""
        self._stopped = True
        tasks = [*self._tasks, *([self._following] if self._following else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._following = None
        if self._life is not None:
            await self._life.close()
            self._life = None

    # --- loads ------------------------------------------------------------------------------------------------------

    async def estimate(self, spec: ModelSpec) -> Estimate:
        """The server's prediction, or its default where it has none. See `Runtime.estimate`."""
        life, size_bytes = self._life, 0
        if life is not None and self._predicts:
            try:
                size_bytes = await life.calls.predict_size(spec, PREDICT_TIMEOUT_S)
            except CallFailed as failed:
                self._predicts = failed.code is not Code.UNIMPLEMENTED
        size_bytes = size_bytes or self._known(spec).default_bytes
        return Estimate(size_bytes=size_bytes, peak_bytes=size_bytes)

    def estimate_now(self, spec: ModelSpec) -> Estimate | None:
        """The default of a server that predicts nothing. See `Runtime.estimate_now`."""
        if self._predicts or self._status is None or self._stopped:
            return None
        size_bytes = self._status.default_bytes
        return Estimate(size_bytes=size_bytes, peak_bytes=size_bytes)

    def _known(self, spec: ModelSpec) -> Status:
        if self._status is None or self._stopped:
            raise RuntimeUnavailable(f"The runtime {self._config.offer.name} does not run.", model=spec.id)
        return self._status

    async def load(self, spec: ModelSpec, estimate: Estimate) -> Loaded:
        """See `Runtime.load`. Waits for a server that is away; one that goes away meanwhile is asked again, once."""
        for _ in range(LOADS_LOST_MAX):
            life = await self._wait_living(spec)
            try:
                return await self._load(life, spec, estimate)
            except _WentAway:
                continue
        raise LoadFailed(
            f"The runtime went away {LOADS_LOST_MAX} times while it loaded model {spec.id}.",
            code=Code.UNAVAILABLE,
            model=spec.id,
        )

    async def _wait_living(self, spec: ModelSpec) -> Life:
        wait_s = WAIT_SHARE * self._known(spec).load_timeout_s
        try:
            async with asyncio.timeout(wait_s):
                while (life := self._life) is None or life.ended.is_set():
                    self._living.clear()
                    await self._living.wait()
        except TimeoutError as error:
            raise RuntimeUnavailable(
                f"The runtime {self._config.offer.name} is away and did not come back in {wait_s:g} s; model {spec.id} can be "
                "loaded once it is there.",
                model=spec.id,
                retry_after_s=1.0,
            ) from error
        return life

    async def _load(self, life: Life, spec: ModelSpec, estimate: Estimate) -> Loaded:
        model, clock = spec.id, asyncio.get_running_loop()
        began_s = clock.time()
        self._bytes[model] = estimate.size_bytes
        try:
            async with asyncio.timeout(life.status.load_timeout_s):
                answer = await life.calls.load(spec)
        except TimeoutError as error:
            raise LoadTimeout(
                f"The runtime did not load model {model} within {life.status.load_timeout_s:g} s.",
                model=model,
            ) from error
        except CallFailed as failed:
            if await life.is_over(failed):
                raise _WentAway from failed
            raise LoadFailed(
                f"The runtime could not load model {model}: {failed}", code=failed.code, model=model
            ) from failed
        if life.ended.is_set():
            raise _WentAway
        size_bytes = answer.sizeInBytes or estimate.size_bytes
        self._loaded.add(model)
        self._bytes[model] = size_bytes
        self._found_again(model, life)
        if answer.sizeInBytes == 0:
            self._spawn(self._ask_size(life, model), f"size of {model}")
        return Loaded(
            size_bytes=size_bytes,
            measured=answer.sizeInBytes > 0,
            load_s=clock.time() - began_s,
            content="",
            replicas=(
                Replica(self._ids.replica(), self._target_id, self._gate(life, model, answer.maxConcurrency)),
            ),
            capacity_bytes=life.status.capacity_bytes,
        )

    def _gate(self, life: Life, model: str, max_concurrency: int) -> int:
        """How many requests may run at once; 0: any number."""
        if not life.status.limits_concurrency:
            return 0
        if max_concurrency < 1:
            self._warn(
                f"The runtime limits what models run at once, but said no maxConcurrency of {model}: 1 is taken.",
                model,
            )
        return max(max_concurrency, 1)

    async def _ask_size(self, life: Life, model: str) -> None:
        clock = asyncio.get_running_loop()
        began_s = clock.time()
        try:
            size_bytes = await life.calls.size(model, SIZE_TIMEOUT_S)
        except CallFailed as failed:
            if not life.ended.is_set():
                self._warn(
                    f"The runtime did not say what {model} weighs ({failed}); its guess stands.", model
                )
            return
        if model in self._loaded and not life.ended.is_set() and size_bytes > 0:
            self._bytes[model] = size_bytes
            self._events.put(SizeChanged(model, size_bytes, clock.time() - began_s))

    # --- unloads ----------------------------------------------------------------------------------------------------

    async def unload(self, model: str) -> None:
        """See `Runtime.unload`. One that fails raises RuntimeUnavailable until it has failed for the config's patience; then its
        memory counts as nobody's. A server that is away is purged before it is used again: nothing is there to unload."""
        life = self._life
        self._loaded.discard(model)
        if life is None:
            return
        try:
            await life.calls.unload(model, UNLOAD_TIMEOUT_S)
        except CallFailed as failed:
            if not await life.is_over(failed):
                self._unload_failed(life, model, failed)
            return
        if not life.ended.is_set():
            self._bytes.pop(model, None)
            self._failing_since_s.pop(model, None)
            self._found_again(model, life)

    def _unload_failed(self, life: Life, model: str, failed: CallFailed) -> None:
        now_s = asyncio.get_running_loop().time()
        since_s = self._failing_since_s.setdefault(model, now_s)
        if now_s - since_s < self._config.unload_patience_s:
            raise RuntimeUnavailable(
                f"The runtime did not unload model {model}: {failed}", model=model
            ) from failed
        del self._failing_since_s[model]
        self._stray[model] = self._bytes.pop(model, 0)
        self._events.put(UnloadGivenUp(model))
        self._tell_stray(life, f"the unload of {model} was given up: {failed}")

    def _found_again(self, model: str, life: Life) -> None:
        """A model whose unload had been given up is gone, or charged again."""
        if self._stray.pop(model, None) is not None:
            self._tell_stray(life, f"the unload of {model} that was given up is made up for")

    def _tell_stray(self, life: Life, reason: str) -> None:
        self._events.put(CapacityChanged(life.status.capacity_bytes, sum(self._stray.values()), reason))

    # --- the rest ---------------------------------------------------------------------------------------------------

    async def prepare(self, model_types: Collection[str]) -> None:
        """See `Runtime.prepare`. Nothing is known of what the server does at the first load of a type."""

    def target_reached(self, target_id: int, reached: bool) -> None:
        """The connection of the management calls tells what has to be known, and the process is not ours. See
        `Runtime.target_reached`."""

    async def next_events(self) -> list[RuntimeEvent]:
        """See `Runtime.next_events`. Raises the bug that ended the following of the server, if one did."""
        assert self._following is not None, "started first"
        taking = asyncio.ensure_future(self._events.take())
        try:
            await asyncio.wait({taking, self._following}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                self._following.result()
            return await taking
        finally:
            taking.cancel()

    def memory(self) -> Sequence[tuple[str, int, int, int]]:
        """The server does not tell. See `Runtime.memory`."""
        return ()

    def _not_ready(self, reason: str) -> None:
        """Nobody reads events before the start is over, and it may take minutes."""
        if self._following is None:
            _log.warning("%s", reason)
        else:
            self._warn(reason)

    def _warn(self, reason: str, model: str = "") -> None:
        self._events.put(Noted(Did.WARNED, model, reason))

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
