"""One other instance as this one is connected to it: its stream followed, its silence noticed, and it is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from modelmesh.errors import Code, LoadTimeout, ModelMeshError, RuntimeUnavailable
from modelmesh.peers import messages
from modelmesh.peers.conversation import Conversation, NotTaken
from modelmesh.peers.dialling import Connection, Dial, dial
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

SILENT_S: Final = 0.75
"""Three heartbeats missed."""
TAKEN_S: Final = 0.25
UNLOAD_S: Final = 30.0
DEAD_S: Final = 3.0
"""A connection that is silent for so long is dialled anew. It may be dead: where packets were lost for a while it carries nothing
for about as long again, because its pauses between tries have grown, and a new one works at once."""
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
            await asyncio.sleep(pause_s)

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
        """The next message; None at the end. While none comes in time the instance counts as silent. Raises RuntimeUnavailable
        when none comes for `DEAD_S`."""
        import grpc.aio

        reading = asyncio.ensure_future(call.read())
        try:
            done, _ = await asyncio.wait({reading}, timeout=SILENT_S)
            if not done:
                self._fall_silent()
                done, _ = await asyncio.wait({reading}, timeout=DEAD_S - SILENT_S)
            if not done:
                raise RuntimeUnavailable(
                    f"Nothing was heard from the instance {self.member.id} for {DEAD_S:g} s."
                )
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

    def _fall_silent(self) -> None:
        if not self.silent:
            self.silent = self._told_silent = True
            self._tell(Silent(self.member.id))

    # --- asking ---------------------------------------------------------------------------------------------

    async def provide(self, ask: Ask) -> Provided:
        """See `Peers.provide`."""
        return await self._converse(pb.Question(provide=messages.to_ask(self._me, ask)), ask, TAKEN_S)

    async def load(self, ask: Ask) -> Provided:
        """See `Peers.load`."""
        return await self._converse(pb.Question(load=messages.to_ask(self._me, ask)), ask, None)

    async def _converse(self, question: pb.Question, ask: Ask, taken_s: float | None) -> Provided:
        if self._talk is None or self._talk.ended:
            self._talk = Conversation(self._channel(ask.model), self.member.id)
        try:
            answer = await self._answer(self._talk.ask(question, ask.deadline_s, taken_s), ask.model)
        except NotTaken as error:
            raise RuntimeUnavailable(
                f"The instance {self.member.id} did not take model {ask.model} on within {TAKEN_S * 1000:.0f} ms.",
                model=ask.model,
            ) from error
        except TimeoutError as error:
            raise LoadTimeout(f"Model {ask.model} was not loaded in time.", model=ask.model) from error
        if answer.WhichOneof("told") == "provided":
            return messages.from_provided(answer.provided)
        raise messages.from_refused(answer.refused, ask.model)

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
