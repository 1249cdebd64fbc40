"""Following a prefix of etcd: resumed after every interruption, and told how far it has come also when nothing changes.

etcd tells a watch of changes under its prefix only. That it has seen all up to revision R, although R changed something else, it
has to be asked. Servers that answer in order with the changes are asked over the stream; older ones
(https://github.com/etcd-io/etcd/issues/15220) may answer before changes that came first, so there two reads at both revisions
are compared, which costs as much as listing the prefix and is done at most a tenth of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Final

import grpc

from modelmesh.errors import StoreUnavailable
from modelmesh.store.etcd_client import READ, WATCH, EtcdClient
from modelmesh.store.etcd_keys import Keys, Span
from modelmesh.store.protocol import Batch, Change, Compacted, Revision
from modelmesh.wire.generated import etcd_pb2 as pb

log = logging.getLogger(__name__)

_ORDERED_SINCE: Final = {(3, 4): 31, (3, 5): 13}
"""The first patch of a minor version whose progress notifications are in order; in all later versions they are."""
_ASK_AGAIN_S: Final = 0.05
_PAUSE_S: Final = (0.1, 2.0)
"""Between the end of a stream and the next one: the shortest and the longest."""
_SILENT_S: Final = 3.0
_LOOK_AFTER_S: Final = 0.01
"""Changes that are on their way need no look."""
_LOOK_SHARE: Final = 10
"""A look is followed by a pause this many times as long."""


def is_ordered(version: str) -> bool:
    """Whether a server of this version answers requests for progress in order with the changes."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        return False
    major, minor, patch = map(int, found.groups())
    if (major, minor) in _ORDERED_SINCE:
        return patch >= _ORDERED_SINCE[major, minor]
    return (major, minor) > max(_ORDERED_SINCE)


class Sought:
    """The newest revision that anyone has learned of and may wait for; and the end of all watches."""

    def __init__(self) -> None:
        self.revision = 0
        self._closed = False
        self._woken: set[asyncio.Event] = set()

    def is_closed(self) -> bool:
        return self._closed

    def seek(self, revision: int) -> None:
        if revision > self.revision:
            self.revision = revision
            self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        for event in self._woken:
            event.set()

    @contextlib.contextmanager
    def waking(self, event: asyncio.Event) -> Iterator[None]:
        """The event is set at each change while entered."""
        self._woken.add(event)
        try:
            yield
        finally:
            self._woken.discard(event)


class EtcdWatch:
    """One watch. `batches` is consumed by one reader; what it does not take stays with etcd (the stream's flow control)."""

    def __init__(self, client: EtcdClient, keys: Keys, span: Span, after: Revision, sought: Sought) -> None:
        self._client = client
        self._keys = keys
        self._span = span
        self._after = after
        """All up to this revision has been yielded."""
        self._sought = sought
        self._woken = asyncio.Event()
        self._pieces: list[Change] = []
        self._has_news = False
        """A look found changes that have not come yet."""
        self._silent_since_s: float | None = None
        self._failures = 0
        """Streams in a row that were not begun, or ended."""
        self._refusals = 0
        self._looked_at_s = 0.0
        self._look_took_s = 0.0

    async def batches(self) -> AsyncIterator[Batch]:
        """See `Store.watch`. Raises StoreUnavailable only for what waiting does not heal."""
        with self._sought.waking(self._woken):
            while not self._sought.is_closed():
                try:
                    async with (
                        self._client.stream(WATCH) as (call, version),
                        contextlib.aclosing(self._follow(call, is_ordered(version))) as batches,
                    ):
                        async for batch in batches:
                            self._after = batch.revision
                            yield batch
                except (grpc.aio.AioRpcError, TimeoutError, StoreUnavailable, _Interrupted) as error:
                    if self._sought.is_closed():
                        return
                    if isinstance(error, StoreUnavailable):
                        raise
                    if self._failures == 0:
                        log.warning(
                            "A watch of the etcd at %s was interrupted and is resumed: %s",
                            self._client,
                            _said(error),
                        )
                    self._failures += 1
                    await self._pause()

    async def _pause(self) -> None:
        """Longer each time, shared out at random; the end of all watches ends it."""
        self._woken.clear()
        pause_s = min(_PAUSE_S[1], _PAUSE_S[0] * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
        ends_s = asyncio.get_running_loop().time() + pause_s
        while not self._sought.is_closed():
            try:
                async with asyncio.timeout_at(ends_s):
                    await self._woken.wait()
                    self._woken.clear()
            except TimeoutError:
                return

    async def _follow(self, call: Any, ordered: bool) -> AsyncGenerator[Batch, None]:
        """The batches of one stream. Ends when the store is closed; raises what ends the stream."""
        self._pieces, self._has_news, self._silent_since_s = [], False, None
        await self._send(
            call,
            pb.WatchRequest(
                create_request=pb.WatchCreateRequest(
                    key=self._span.key,
                    range_end=self._span.end,
                    start_revision=self._after + 1,
                    progress_notify=True,
                    fragment=True,
                )
            ),
        )
        reading: asyncio.Task[Any] = asyncio.create_task(call.read())
        looking: asyncio.Task[Revision | None] | None = None
        try:
            while not self._sought.is_closed():
                behind = self._sought.revision > self._after
                self._check_silence(waits=behind and (ordered or self._has_news))
                if behind and ordered:
                    await self._send(call, pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
                elif behind and looking is None:
                    looking = asyncio.create_task(self._look(Revision(self._sought.revision)))
                await self._wait(reading, looking, _ASK_AGAIN_S if behind and ordered else None)
                if self._sought.is_closed():
                    return
                if reading.done():
                    self._has_news, self._silent_since_s = False, None
                    batch = self._batch(reading.result())
                    reading = asyncio.create_task(call.read())
                    if batch is not None:
                        yield batch
                elif looking is not None and looking.done():
                    seen, looking = looking.result(), None
                    self._has_news = seen is None
                    if seen is not None and seen > self._after:
                        yield Batch(seen, ())
        finally:
            tasks = [task for task in (reading, looking) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _check_silence(self, *, waits: bool) -> None:
        """Raises _Interrupted when the stream, which should tell something, does not for long: its member hangs."""
        now_s = asyncio.get_running_loop().time()
        if not waits:
            self._silent_since_s = None
        elif self._silent_since_s is None:
            self._silent_since_s = now_s
        elif now_s - self._silent_since_s > _SILENT_S:
            raise _Interrupted(f"there is news, and nothing came for {_SILENT_S:g} s")

    async def _send(self, call: Any, request: pb.WatchRequest) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):  # it has ended, and reading says why
            await call.write(request)

    async def _wait(
        self, reading: asyncio.Task[Any], looking: asyncio.Task[Any] | None, timeout_s: float | None
    ) -> None:
        """Until there is something to read, a look is done, somebody waits for more, or the time is over."""
        self._woken.clear()
        woken = asyncio.create_task(self._woken.wait())
        try:
            await asyncio.wait(
                {task for task in (reading, looking, woken) if task is not None},
                timeout=timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            woken.cancel()

    def _batch(self, answer: Any) -> Batch | None:
        """What an answer of etcd tells; None for nothing yet."""
        if answer is grpc.aio.EOF:
            raise _Interrupted("etcd ended the stream")
        self._client.check_cluster(answer.header)
        if answer.compact_revision:
            raise Compacted(
                f"The etcd at {self._client} keeps changes from revision {answer.compact_revision} on, "
                f"not those after {self._after}."
            )
        if answer.canceled:
            self._refused(answer.cancel_reason)
        if answer.created:
            self._failures = self._refusals = 0
            return None
        if not answer.events:
            revision = Revision(answer.header.revision)
            return Batch(revision, ()) if revision > self._after and not self._pieces else None
        # A member that lags behind our revision may repeat what we had.
        self._pieces += self._keys.changes(
            event for event in answer.events if event.kv.mod_revision > self._after
        )
        if answer.fragment:
            return None
        revision = Revision(max(self._after, answer.events[-1].kv.mod_revision))
        changes, self._pieces = self._pieces, []
        return Batch(revision, changes) if revision > self._after else None

    def _refused(self, reason: str) -> None:
        """A token that has run out is refused in the same words as missing rights, so the password is shown once more first."""
        if "permission denied" not in reason:
            raise _Interrupted(reason or "etcd cancelled it")
        self._client.forget_token()
        self._refusals += 1
        if self._refusals == 1:
            raise _Interrupted(reason)
        raise StoreUnavailable(
            f"The etcd at {self._client} does not let us follow {self._span.key.decode(errors='replace')!r}: {reason}."
        )

    async def _look(self, revision: Revision) -> Revision | None:
        """`revision` when nothing under the prefix has changed since what was yielded last, up to it; None when something has,
        which will come. Deletions show in the number of keys, everything else in the revisions of the keys there are. Raises
        Compacted when that can no longer be told."""
        loop, after = asyncio.get_running_loop(), self._after
        pause_s = self._looked_at_s + _LOOK_SHARE * self._look_took_s - loop.time()
        await asyncio.sleep(max(_LOOK_AFTER_S, pause_s))
        start_s = loop.time()
        key, end = self._span.key, self._span.end
        before = pb.RangeRequest(key=key, range_end=end, revision=after, count_only=True)
        since = pb.RangeRequest(
            key=key, range_end=end, revision=revision, min_mod_revision=after + 1, keys_only=True
        )
        try:
            was, now = await self._read(before, since)
        except Compacted:
            (now,) = await self._read(since)
            if now.kvs:
                return None
            raise
        finally:
            self._looked_at_s, self._look_took_s = loop.time(), loop.time() - start_s
        return revision if was.count == now.count and not now.kvs else None

    async def _read(self, *ranges: pb.RangeRequest) -> list[pb.RangeResponse]:
        """All at once."""
        request = pb.TxnRequest(success=[pb.RequestOp(request_range=each) for each in ranges])
        try:
            answer = await self._client.call(READ, request)
        except StoreUnavailable as error:
            raise _Interrupted(str(error)) from error
        return [response.response_range for response in answer.responses]


class _Interrupted(Exception):
    """The stream is over; another one goes on."""


def _said(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.details() or error.code().name
    return str(error) or "no endpoint is connected"
