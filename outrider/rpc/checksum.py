"""Checksums of the messages between coordinator and workers: TCP's misses flipped bits, and plain HTTP/2 has none.

A message that is serialized carries the CRC-32 of its bytes behind them, as if it were the message's last field: so it
covers whatever fields there are, now and later, in one pass over the bytes.
"""

# grpcio has no types for interceptors and multicallables.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from outrider.core.protocol.errors import DamagedMessageError, UntrustedWorkerError

MessageT = TypeVar("MessageT", bound=Message)

CHECKSUM_METADATA: Final = ("outrider-checksum", "crc32")
"""The metadata of an RPC both of whose ends add checksums and demand them. Calls made by hand have none."""

_FIELD_NUMBER: Final = 14
_TAG: Final = bytes([_FIELD_NUMBER << 3 | 5])  # 5: four bytes, the lowest first
_SIZE: Final = len(_TAG) + 4


def sealed(content: bytes) -> bytes:
    """A serialized message with its checksum."""
    return content + _TAG + zlib.crc32(content).to_bytes(4, "little")


def parsed(message_type: type[MessageT], content: bytes) -> MessageT:
    """The message that `sealed` made these bytes of.

    Raises DamagedMessageError if they are not what was sent, and UntrustedWorkerError if that was no such message.
    """
    try:
        return message_type.FromString(_intact(content))
    except DecodeError as error:
        raise UntrustedWorkerError(
            f"what was sent is no {message_type.DESCRIPTOR.name}; restart the service"
        ) from error


def _intact(content: bytes) -> bytes:
    """The same bytes, checksum included. Raises DamagedMessageError."""
    whole = memoryview(content)
    if content[-_SIZE:] != _TAG + zlib.crc32(whole[:-_SIZE]).to_bytes(4, "little"):
        raise DamagedMessageError("a message was damaged on its way; if that happens often, look at network and memory")
    return content


class Checksums(grpc.aio.ServerInterceptor):
    """Checks and adds them on the RPCs that were opened with CHECKSUM_METADATA.

    gRPC calls it once for each RPC, not for each message.
    """

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or CHECKSUM_METADATA not in {
            tuple(pair) for pair in handler_call_details.invocation_metadata
        }:
            return handler
        deserialize, serialize = handler.request_deserializer, handler.response_serializer
        return handler._replace(
            request_deserializer=lambda content: deserialize(_intact(content)),
            response_serializer=lambda message: sealed(serialize(message)),
        )
