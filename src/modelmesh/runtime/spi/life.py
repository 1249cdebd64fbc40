"""One life of a model server: from the connection on which it said READY, and was empty, to the end of that connection.

A server that restarts is another one that has no models; nobody says so but the connection. So each life has its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final, Self

from modelmesh.errors import Code, RuntimeUnavailable
from modelmesh.runtime.spi.calls import LEGACY_SERVICE, SERVICE, CallFailed, Calls
from modelmesh.runtime.spi.status import Status, read
from modelmesh.wire.generated import model_runtime_pb2 as wire

_PAUSE_S: Final = 0.1
_PAUSE_S_MAX: Final = 1.0
_LEAVING_S: Final = 0.5
"""How long a call that found no server waits for the news that the connection is over."""


class Life:
    """`begin` makes one. `ended` is set once a connection of it is over."""

    def __init__(self, calls: Calls, serving: Calls | None) -> None:
        self.calls = calls
        self.ended = asyncio.Event()
        self.status: Status
        self._connections = [calls] if serving is None else [calls, serving]
        self._watching: list[asyncio.Task[None]] = []

    @classmethod
    async def begin(cls, address: str, service: str, serving_address: str, timeout_s: float) -> Self | None:
        """Connect, and ask for the status, which purges the server; None when it says STARTING. Raises CallFailed, and
        RuntimeUnavailable when it says FAILING or what makes no sense."""
        serving = Calls(serving_address) if serving_address not in ("", address) else None
        life = cls(Calls(address, service), serving)
        try:
            async with asyncio.timeout(timeout_s):
                for connection in life._connections:
                    await connection.connect()
                    watching = asyncio.create_task(
                        life._watch(connection), name=f"watch {connection.address}"
                    )
                    life._watching.append(watching)
                answer = await life.calls.status(timeout_s)
            if answer.status == wire.RuntimeStatusResponse.STARTING:
                await life.close()
                return None
            if answer.status != wire.RuntimeStatusResponse.READY:
                said = "FAILING" if answer.status == answer.FAILING else f"status {answer.status}"
                raise RuntimeUnavailable(f"The runtime at {address} says {said}.")
            life.status = read(address, answer)
        except TimeoutError as error:
            await life.close()
            raise CallFailed(Code.DEADLINE_EXCEEDED, "it did not answer") from error
        except BaseException:
            await life.close()
            raise
        return life

    async def _watch(self, connection: Calls) -> None:
        try:
            await connection.left()
        finally:
            self.ended.set()

    async def is_over(self, failed: CallFailed) -> bool:
        """Whether a call failed because this life ended; the news of it may be on its way."""
        if failed.code in (Code.UNAVAILABLE, Code.CANCELLED):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LEAVING_S):
                    await self.ended.wait()
        return self.ended.is_set()

    async def close(self) -> None:
        """Cancels calls under way. Idempotent."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for connection in self._connections:
            await connection.close()
        self.ended.set()


class Poll:
    """Asks the servers at `addresses` in turn until one is ready. `note` is told, once each, why one is not."""

    def __init__(self, addresses: Sequence[str], serving_address: str, note: Callable[[str], None]) -> None:
        self._services = dict.fromkeys(addresses, SERVICE)
        self._serving_address = serving_address
        self._note = note

    async def ready(self, window_s: float) -> Life:
        """The first that is ready. Raises RuntimeUnavailable when none is within the window, or one says that it fails."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + window_s
        pause_s, why = _PAUSE_S, dict.fromkeys(self._services, "")
        while True:
            for address in self._services:
                left_s = ends_s - loop.time()
                if left_s <= 0:
                    said = "; ".join(f"{each}: {reason or 'not asked'}" for each, reason in why.items())
                    raise RuntimeUnavailable(f"No runtime was ready within {window_s:g} s ({said}).")
                found = await self._ask(address, left_s)
                if isinstance(found, Life):
                    return found
                if found != why[address]:
                    why[address] = found
                    self._note(f"The runtime at {address} is not ready: {found}. It is asked again.")
            await asyncio.sleep(min(pause_s, max(ends_s - loop.time(), 0.0)))
            pause_s = min(1.5 * pause_s, _PAUSE_S_MAX)

    async def _ask(self, address: str, timeout_s: float) -> Life | str:
        """A life, or why there is none yet. A server that does not know the service is asked by the other name next."""
        service = self._services[address]
        try:
            life = await Life.begin(address, service, self._serving_address, timeout_s)
        except CallFailed as failed:
            if failed.code is Code.UNIMPLEMENTED:
                self._services[address] = LEGACY_SERVICE if service == SERVICE else SERVICE
            return f"{failed.code.name}, {failed.text}"
        return "it says STARTING" if life is None else life
