"""Server reflection, so that grpcurl and the like need no .proto files. v1 and v1alpha are equal on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, cast

import grpc
from google.protobuf.descriptor import FileDescriptor

from modelmesh.errors import Code
from modelmesh.management.server import Context, Service
from modelmesh.wire.generated import health_pb2, inference_pb2, model_mesh_pb2
from modelmesh.wire.generated import reflection_pb2 as pb
from modelmesh.wire.pool import POOL

NAMES: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_FILES: Final = (
    inference_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    model_mesh_pb2.DESCRIPTOR,
    pb.DESCRIPTOR,
)
"""Imported for their descriptors, which are then in the pool."""


class Reflection:
    def __init__(self, services: Sequence[str]) -> None:
        self._services = sorted(services)

    async def info(
        self, requests: AsyncIterator[pb.ServerReflectionRequest], context: Context
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        async for request in requests:
            response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
            try:
                self._answer(request, response)
            except KeyError as error:
                response.error_response.error_code = Code.NOT_FOUND
                response.error_response.error_message = str(error.args[0])
            yield response

    def _answer(self, request: pb.ServerReflectionRequest, response: pb.ServerReflectionResponse) -> None:
        """Raises KeyError for what is not there."""
        what = request.WhichOneof("message_request")
        if what == "list_services":
            for name in self._services:
                response.list_services_response.service.add(name=name)
        elif what == "file_by_filename":
            _add_file(response, POOL.FindFileByName(request.file_by_filename))
        elif what == "file_containing_symbol":
            _add_file(response, POOL.FindFileContainingSymbol(request.file_containing_symbol))
        elif what == "all_extension_numbers_of_type":
            POOL.FindMessageTypeByName(request.all_extension_numbers_of_type)
            response.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
        else:
            raise KeyError("There are no extensions here.")


def services(others: Sequence[str]) -> list[Service]:
    """The reflection services, which list themselves beside the others."""
    reflection = Reflection([name for name in [*others, *NAMES] if _described(name)])
    handler = grpc.stream_stream_rpc_method_handler(
        cast(Any, reflection.info),
        request_deserializer=pb.ServerReflectionRequest.FromString,
        response_serializer=pb.ServerReflectionResponse.SerializeToString,
    )
    return [Service(name, {"ServerReflectionInfo": handler}) for name in NAMES]


def _described(service: str) -> bool:
    """Names a service had before are served, but not shown: no file describes them."""
    try:
        POOL.FindServiceByName(service)
    except KeyError:
        return service in NAMES
    return True


def _add_file(response: pb.ServerReflectionResponse, file: FileDescriptor) -> None:
    response.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)
