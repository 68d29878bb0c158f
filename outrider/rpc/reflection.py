"""Server reflection under both of its names. grpcio ships v1alpha; v1 has the same messages in another package."""

# grpcio's companions have no types of their own.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from outrider.rpc.status import ServicerContext, abort, undecodable

V1ALPHA_SERVICE_NAME = reflection.SERVICE_NAME
"""Full name of the older protocol, which some tools still speak alone."""

V1_SERVICE_NAME = V1ALPHA_SERVICE_NAME.replace(".v1alpha.", ".v1.")
"""Full name of the protocol that tools ask for first."""


def add_reflection(server: grpc.aio.Server, service_names: Iterable[str]) -> None:
    """Lets `server` describe the named services, and reflection itself, to tools such as grpcurl."""
    names = {*service_names, V1ALPHA_SERVICE_NAME}
    servicer = _Reflection({*names, V1_SERVICE_NAME}, pool=_pool(names))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(V1_SERVICE_NAME, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))


class _Reflection(reflection.aio.ReflectionServicer):
    """grpcio's, which lets a message that cannot be parsed end in UNKNOWN, an exception's text and a traceback."""

    async def ServerReflectionInfo(
        self, request_iterator: AsyncIterable[Any], unused_context: ServicerContext
    ) -> AsyncIterator[Any]:
        """Describes what each message of the stream asks for."""
        answers: Any = super().ServerReflectionInfo(request_iterator, unused_context)
        try:
            async for answer in answers:
                yield answer
        except DecodeError:
            await abort(unused_context, undecodable())


def _pool(service_names: Iterable[str]) -> DescriptorPool:
    """The files of the services, and of reflection v1: not in the process's own pool, where v1 may stand one day."""
    pool = DescriptorPool()
    for name in service_names:
        _copy(Default().FindFileContainingSymbol(name), pool)
    v1alpha = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(v1alpha)
    v1_text = text_format.MessageToString(v1alpha).replace("v1alpha", "v1")
    pool.Add(text_format.Parse(v1_text, FileDescriptorProto()))
    return pool


def _copy(file: FileDescriptor, pool: DescriptorPool) -> None:
    for dependency in file.dependencies:
        _copy(dependency, pool)
    pool.AddSerializedFile(file.serialized_pb)
