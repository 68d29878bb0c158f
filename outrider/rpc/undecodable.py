"""Undecodable requests: INVALID_ARGUMENT in words, where gRPC would say UNKNOWN and log a traceback."""

# grpcio has no types for interceptors.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from outrider.core.protocol.errors import DamagedMessageError, FieldViolation, InvalidRequestError
from outrider.rpc.status import ServicerContext, abort

_log = logging.getLogger(__name__)


class UndecodableRequests(grpc.aio.ServerInterceptor):
    """Parses the one request of a unary RPC itself. Messages of streams are parsed as they are read: see `rpc_errors`.

    gRPC calls it once for each RPC, not for each message.
    """

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler, with a request that may be refused."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        serve = getattr(handler, kind)

        async def guarded(content: bytes, context: ServicerContext) -> Any:
            try:
                request = handler.request_deserializer(content)
            except DecodeError:
                _log.warning("undecodable request for %s", handler_call_details.method)
                violation = FieldViolation("request", "it cannot be parsed as the protobuf type of this method")
                await abort(context, InvalidRequestError([violation]))
            except DamagedMessageError as damaged:
                await abort(context, damaged)
            return await serve(request, context)

        return handler._replace(request_deserializer=None, **{kind: guarded})
