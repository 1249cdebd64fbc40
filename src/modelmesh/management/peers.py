"""The peer service: what other instances are told, and what they may ask. Reached over the peer port only."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final, Protocol

import grpc
import grpc.aio

from modelmesh.errors import ModelMeshError, RuntimeUnavailable
from modelmesh.management.answering import Answering
from modelmesh.management.server import Context, Service, abort, unary
from modelmesh.peers import messages
from modelmesh.peers.picture import Picture
from modelmesh.peers.protocol import Hosted
from modelmesh.wire.generated import peers_pb2 as pb

RECALLED_MAX: Final = 1_000
"""Entries of the journal in one answer, whatever was asked for."""


class Asked(Protocol):
    """What is served. `hosted` is None until the instance has started, and when it stops."""

    picture: Picture
    hosted: Hosted | None


class _Service:
    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    async def follow(self, request: pb.FollowRequest, context: Context) -> AsyncIterator[pb.Update]:
        picture = self._asked.picture
        async for update in picture.follow(request.epoch, request.sequence):
            yield messages.to_update(update)
        yield pb.Update(epoch=picture.epoch, sequence=picture.sequence, goodbye=True)

    async def converse(
        self, questions: AsyncIterator[pb.Question], context: Context
    ) -> AsyncIterator[pb.Answer]:
        async with contextlib.aclosing(Answering(self._hosted).answers(questions)) as answers:
            async for answer in answers:
                yield answer

    async def unload(self, request: pb.UnloadRequest, context: Context) -> pb.UnloadReply:
        await self._hosted().unload(request.asker, request.model, request.why)
        return pb.UnloadReply()

    async def recall(self, request: pb.RecallRequest, context: Context) -> pb.RecallReply:
        limit = min(request.limit, RECALLED_MAX)
        return messages.to_recalled(await self._hosted().recall(request.asker, list(request.names), limit))

    async def order(self, request: pb.OrderRequest, context: Context) -> pb.OrderReply:
        await self._hosted().order(request.asker, messages.from_order(request))
        return pb.OrderReply()

    def _hosted(self) -> Hosted:
        if self._asked.hosted is None:
            raise RuntimeUnavailable("This instance is starting, or stopping.", retry_after_s=1.0)
        return self._asked.hosted


async def _abort(context: Context, error: ModelMeshError) -> None:
    await abort(context, error, ((messages.KIND, type(error).__name__),))


def service(asked: Asked) -> Service:
    """The peer service of an instance."""
    calls = _Service(asked)

    return Service(
        messages.SERVICE,
        {
            "Follow": grpc.unary_stream_rpc_method_handler(
                calls.follow,
                request_deserializer=pb.FollowRequest.FromString,
                response_serializer=pb.Update.SerializeToString,
            ),
            "Converse": grpc.stream_stream_rpc_method_handler(
                calls.converse,
                request_deserializer=pb.Question.FromString,
                response_serializer=pb.Answer.SerializeToString,
            ),
            "Unload": unary(calls.unload, pb.UnloadRequest, pb.UnloadReply, _abort),
            "Recall": unary(calls.recall, pb.RecallRequest, pb.RecallReply, _abort),
            "Order": unary(calls.order, pb.OrderRequest, pb.OrderReply, _abort),
        },
    )
