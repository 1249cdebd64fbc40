"""One other instance as this one is connected to it: its stream followed, its silence noticed, and it is asked.

Slow is not dead. On a busy machine the other may say nothing for a second, and what is asked of it waits as long: going elsewhere
then would only make a second copy, on a machine that is busy enough. So it is suspected at once only when its process answers no
pings either, which the data plane finds out by threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from modelmesh.errors import Code, LoadTimeout, ModelMeshError, RuntimeUnavailable
from modelmesh.peers import messages
from modelmesh.peers.conversation import Conversation
from modelmesh.peers.dialling import Connection, Dial, dial
from modelmesh.peers.picture import HEARTBEAT_S
from modelmesh.peers.protocol import (
    Ask,
    Back,
    Gone,
    Member,
    News,
    Order,
    Provided,
    Remembered,
    Silent,
    Told,
)
from modelmesh.wire.generated import peers_pb2 as pb

if TYPE_CHECKING:
    import grpc.aio

SILENT_BEATS: Final = 3
"""After so many without a word it is suspected, if its process answers no pings. Beats are counted and not time: it may be the
event loop here that was late."""
SLOW_BEATS: Final = 20
"""After so many it is suspected whatever its process does: its event loop hangs."""
DEAD_BEATS: Final = 12
"""The connection to one that is suspected is dialled anew after so many. It may be dead: where packets were lost for a while it
carries nothing for about as long again, because its pauses between tries have grown, and a new one works at once."""
DOUBT_S: Final = 0.25
"""One that is suspected and asked all the same has so long to say something."""
UNLOAD_S: Final = 30.0
ORDER_S: Final = 5.0
REDIAL_S: Final = 0.1
REDIAL_S_MAX: Final = 2.0
log = logging.getLogger(__name__)


class Link:
    """Of one life of a member; `run` follows it until cancelled, or until it says goodbye."""

    def __init__(self, me: str, member: Member, tell: Callable[[News], None], connect: Dial = dial) -> None:
        self.member = member
        self.met = asyncio.Event()
        """It was heard completely, or could not be reached, once."""
        self.silent = True
        """It does not answer now."""
        self.trouble = ""
        """Why, where that is known."""
        self._me = me
        self._tell = tell
        self._connect = connect
        self._connection: Connection | None = None
        self._talk: Conversation | None = None
        self._epoch = self._sequence = 0
        self._told_silent = self._complained = False
        self._reached = True
        self._missed = 0
        """Beats without a word on this connection."""
        self._found = asyncio.Event()
        """It was not reached and is again, so it is to be dialled now."""

    def reached(self, reached: bool) -> None:
        """Whether its process answers pings, as the data plane finds."""
        self._reached = reached
        if reached and self.silent:
            self._missed = DEAD_BEATS
            self._found.set()
        self._judge()

    async def run(self) -> None:
        """Follow, dial again, go on where it was."""
        pause_s = REDIAL_S
        while True:
            before = self._sequence
            try:
                await self._dial()
                if await self._follow():
                    return
            except ModelMeshError as error:
                self.met.set()
                self.trouble = str(error)
                if not self._complained:
                    self._complained = True
                    log.warning("Not connected to instance %s: %s", self.member.id, error)
            self._fall_silent()
            pause_s = REDIAL_S if self._sequence != before else min(2 * pause_s, REDIAL_S_MAX)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._found.wait()

    async def _dial(self) -> None:
        """Anew each time, because certificates may be others by now."""
        await self._use(await self._connect(self.member.address))

    async def _follow(self) -> bool:
        """Until the stream ends; whether with a goodbye."""
        follow = self._channel("").unary_stream(
            f"/{messages.SERVICE}/Follow",
            request_serializer=pb.FollowRequest.SerializeToString,
            response_deserializer=pb.Update.FromString,
        )
        call = follow(pb.FollowRequest(follower=self._me, epoch=self._epoch, sequence=self._sequence))
        self._missed = 0
        self._found.clear()
        try:
            while True:
                message = await self._next(call)
                if message is None:
                    return False
                if message.goodbye:
                    self._tell(Gone(self.member.id))
                    return True
                self._take(message)
        finally:
            call.cancel()

    async def _next(self, call: Any) -> pb.Update | None:
        """The next message; None at the end. Raises RuntimeUnavailable when none comes for too long."""
        import grpc.aio

        reading = asyncio.ensure_future(call.read())
        try:
            while not (await asyncio.wait({reading}, timeout=HEARTBEAT_S))[0]:
                self._missed += 1
                self._judge()
                if self._missed >= (DEAD_BEATS if self.silent else SLOW_BEATS):
                    raise RuntimeUnavailable(
                        f"Nothing is heard from the instance {self.member.id}; it is dialled anew."
                    )
            self._missed = 0
            message = reading.result()
        except grpc.aio.AioRpcError as error:
            raise self._failed(error, "") from error
        finally:
            reading.cancel()
        return None if message is grpc.aio.EOF else cast("pb.Update", message)

    def _take(self, message: pb.Update) -> None:
        if message.epoch != self.member.epoch:
            raise RuntimeUnavailable(
                f"At {self.member.address} another life of {self.member.id} answers; its record is awaited."
            )
        if self.silent:
            self.silent = self._complained = False
            self.trouble = ""
            if self._told_silent:
                self._told_silent = False
                self._tell(Back(self.member.id))
        update = messages.from_update(message)
        self._epoch = update.epoch
        # A snapshot that breaks off is begun anew: only what is whole may be gone on from.
        self._sequence = update.sequence if update.complete else 0
        if update.begins or update.held or update.failed or update.load is not None:
            self._tell(Told(self.member.id, update))
        if update.complete:
            self.met.set()

    def _judge(self) -> None:
        """Whether it is to be suspected now."""
        if self._missed >= SILENT_BEATS and not self._reached:
            self._fall_silent()

    def _fall_silent(self) -> None:
        if not self.silent:
            self.silent = self._told_silent = True
            self._tell(Silent(self.member.id))

    # --- asking ---------------------------------------------------------------------------------------------

    async def provide(self, ask: Ask) -> Provided:
        """See `Peers.provide`."""
        answer = self._converse(pb.Question(provide=messages.to_ask(self._me, ask)), ask)
        return await (self._doubted(answer, ask.model) if self.silent else answer)

    async def load(self, ask: Ask) -> Provided:
        """See `Peers.load`."""
        return await self._converse(pb.Question(load=messages.to_ask(self._me, ask)), ask)

    async def _converse(self, question: pb.Question, ask: Ask) -> Provided:
        if self._talk is None or self._talk.ended:
            self._talk = Conversation(self._channel(ask.model), self.member.id)
        try:
            answer = await self._answer(self._talk.ask(question, ask.deadline_s), ask.model)
        except TimeoutError as error:
            raise LoadTimeout(f"Model {ask.model} was not loaded in time.", model=ask.model) from error
        if answer.WhichOneof("told") == "provided":
            return messages.from_provided(answer.provided)
        raise messages.from_refused(answer.refused, ask.model)

    async def _doubted(self, answer: Coroutine[Any, Any, Provided], model: str) -> Provided:
        """What one says that is suspected: it answers, or says anything, within `DOUBT_S`."""
        answering = asyncio.ensure_future(answer)
        try:
            await asyncio.wait({answering}, timeout=DOUBT_S)
            if self.silent and not answering.done():
                raise RuntimeUnavailable(f"The instance {self.member.id} does not answer.", model=model)
            return await answering
        finally:
            answering.cancel()

    async def unload(self, model: str, why: str) -> None:
        """See `Peers.unload`."""
        request = pb.UnloadRequest(asker=self._me, model=model, why=why)
        await self._unary("Unload", request, pb.UnloadReply, UNLOAD_S, model)

    async def recall(self, names: Sequence[str], limit: int, deadline_s: float) -> list[Remembered]:
        """See `Peers.recall`."""
        request = pb.RecallRequest(asker=self._me, names=names, limit=limit)
        return messages.from_recalled(await self._unary("Recall", request, pb.RecallReply, deadline_s, ""))

    async def order(self, order: Order) -> None:
        """See `Peers.order`."""
        request = pb.OrderRequest(asker=self._me, order=order)
        await self._unary("Order", request, pb.OrderReply, ORDER_S, "")

    async def close(self) -> None:
        """Cancel all calls. Idempotent."""
        await self._use(None)

    async def _use(self, connection: Connection | None) -> None:
        """Instead of the one before, whose calls are cancelled."""
        before, self._connection = self._connection, connection
        talk, self._talk = self._talk, None
        if talk is not None:
            await talk.close()
        if before is not None:
            await before.close()

    # --- the wire -------------------------------------------------------------------------------------------

    async def _unary(self, method: str, request: Any, answer: type[Any], timeout_s: float, model: str) -> Any:
        call = self._channel(model).unary_unary(
            f"/{messages.SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return await self._answer(call(request, timeout=timeout_s), model)

    def _channel(self, model: str) -> grpc.aio.Channel:
        if self._connection is None:
            raise RuntimeUnavailable(
                f"The instance {self.member.id} at {self.member.address} was not reached yet.",
                model=model,
            )
        return self._connection.channel

    async def _answer(self, waiting: Awaitable[Any], model: str) -> Any:
        import grpc.aio

        try:
            return await waiting
        except grpc.aio.AioRpcError as error:
            raise self._failed(error, model) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not who waits was cancelled: the channel was closed.
            raise RuntimeUnavailable(f"The connection to {self.member.id} is closed.", model=model) from None

    def _failed(self, error: grpc.aio.AioRpcError, model: str) -> ModelMeshError:
        """What the other raised, or that it cannot be reached."""
        trailers = dict(error.trailing_metadata() or ())
        code, details = Code(error.code().value[0]), error.details() or error.code().name
        kind = str(trailers.get(messages.KIND, ""))
        if not kind:
            refusal = "" if self._connection is None else self._connection.refusal
            silent = f"The instance {self.member.id} at {self.member.address} does not answer: {details}."
            return RuntimeUnavailable(refusal or silent, model=model)
        pushback = str(trailers.get("grpc-retry-pushback-ms", ""))
        retry_after_s = int(pushback) / 1000 if pushback.isdigit() else None
        return messages.error_of(kind, code, details, model, retry_after_s)
